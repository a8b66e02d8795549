//! Metrics in the text format of Prometheus and OpenMetrics: figures of volumes and sessions, as
//! they are at the moment somebody asks. `docs/metrics.md` says what each means; a test compares
//! the names.

use crate::engine::api::{SessionStatus, Status, VolumeFigures};
use crate::types::Role;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};
use std::sync::atomic::AtomicU64;

/// What the answer is, for whoever asked.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

type Labels = Vec<(&'static str, String)>;
type Figures = Family<Labels, Gauge<f64, AtomicU64>>;
type Counts = Family<Labels, Counter<u64>>;

/// The metrics of one moment, as they are put together.
struct Metrics(Registry);

impl Metrics {
    fn gauges(&mut self, name: &str, help: &str, unit: Option<Unit>) -> Figures {
        let family = Figures::default();
        match unit {
            Some(unit) => self.0.register_with_unit(name, help, unit, family.clone()),
            None => self.0.register(name, help, family.clone()),
        }
        family
    }

    /// A figure that there is one of.
    #[allow(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 bytes are enough")]
    fn bytes(&mut self, name: &str, help: &str, value: u64) {
        let gauge = Gauge::<f64, AtomicU64>::default();
        gauge.set(value as f64);
        self.0.register_with_unit(name, help, Unit::Bytes, gauge);
    }

    fn counters(&mut self, name: &str, help: &str, unit: Option<Unit>) -> Counts {
        let family = Counts::default();
        match unit {
            Some(unit) => self.0.register_with_unit(name, help, unit, family.clone()),
            None => self.0.register(name, help, family.clone()),
        }
        family
    }
}

#[allow(clippy::cast_precision_loss, reason = "a gauge is a float; 2^53 bytes are enough")]
fn set(figures: &Figures, labels: &Labels, value: u64) {
    figures.get_or_create(labels).set(value as f64);
}

fn add(counts: &Counts, labels: &Labels, value: u64) {
    counts.get_or_create(labels).inc_by(value);
}

/// The answer to a scrape.
#[must_use]
pub fn text(status: &Status, volumes: &[VolumeFigures]) -> String {
    let mut metrics = Metrics(Registry::with_prefix("snapvol"));
    let info = metrics.gauges("build", "1; the program and how it talks to the disk", None);
    set(&info, &vec![("version", status.version.clone()), ("io_engine", status.io_engine.clone())], 1);
    metrics.bytes("space_free", "Free in the store's file system", status.space.free);
    metrics.bytes("space_size", "The store's file system", status.space.total);
    let transfers = metrics.gauges("transfers", "Sends and receives under way", None);
    for kind in ["send", "receive"] {
        let count = status.transfers.iter().filter(|transfer| transfer.kind == kind).count();
        set(&transfers, &vec![("kind", kind.to_owned())], count as u64);
    }
    add_volumes(&mut metrics, status, volumes);
    add_sessions(&mut metrics, &status.sessions);
    let mut text = String::new();
    // Only a writer that fails can fail here.
    let _ = encode(&mut text, &metrics.0);
    text
}

fn add_volumes(metrics: &mut Metrics, status: &Status, volumes: &[VolumeFigures]) {
    let bytes = || Some(Unit::Bytes);
    let info = metrics.gauges("volume_state", "1; the volume's role and state", None);
    let size = metrics.gauges("volume_size", "What clients see", bytes());
    let in_use = metrics.gauges("volume_in_use", "In use by production data", bytes());
    let saved = metrics.gauges("volume_saved", "Before-images of all snapshots", bytes());
    let journal = metrics.gauges("volume_journal", "The volume's journal", bytes());
    let reserved =
        metrics.gauges("volume_reserved", "Kept back so that deletions work on a full disk", bytes());
    let snapshots = metrics.gauges("volume_snapshots", "Snapshots that users see", None);
    let waiting = metrics.gauges("volume_waiting_writes", "Writes that wait for space", None);
    let clients = metrics.gauges("volume_clients", "Clients of the volume and its snapshots", None);
    let dropped = metrics.counters("volume_dropped_snapshots", "Snapshots deleted to make room", None);
    let requests = metrics.counters("volume_requests", "Requests of clients", None);
    let request_bytes =
        metrics.counters("volume_requested", "Bytes that requests of clients were about", bytes());
    let scheduled = metrics.gauges("volume_scheduled_snapshots", "Snapshots that a schedule took", None);
    let failing = metrics.gauges("volume_schedule_failing", "1 while the schedule fails, else 0", None);
    for volume in volumes {
        let of = vec![("volume", volume.name.clone())];
        let with = |more: &[(&'static str, &str)]| -> Labels {
            of.iter().cloned().chain(more.iter().map(|(key, value)| (*key, (*value).to_owned()))).collect()
        };
        let role = if volume.role == Role::Primary { "primary" } else { "secondary" };
        set(&info, &with(&[("role", role), ("state", &volume.state)]), 1);
        set(&size, &of, volume.size);
        set(&in_use, &of, volume.in_use);
        set(&saved, &of, volume.saved);
        set(&journal, &of, volume.journal);
        set(&reserved, &of, volume.reserved);
        set(&snapshots, &of, volume.snapshots);
        set(&waiting, &of, volume.waiting_writes);
        set(&clients, &with(&[("access", "read")]), volume.clients.0);
        set(&clients, &with(&[("access", "write")]), volume.clients.1);
        add(&dropped, &of, volume.dropped_snapshots);
        for (kind, count, sum) in &volume.requests {
            add(&requests, &with(&[("kind", kind)]), *count);
            add(&request_bytes, &with(&[("kind", kind)]), *sum);
        }
    }
    for volume in &status.volumes {
        if let Some(schedule) = &volume.schedule {
            let of = vec![("volume", volume.name.clone())];
            set(&scheduled, &of, schedule.snapshots as u64);
            set(&failing, &of, u64::from(schedule.error.is_some()));
        }
    }
}

fn add_sessions(metrics: &mut Metrics, sessions: &[SessionStatus]) {
    let state = metrics.gauges("session_state", "1; the session's state", None);
    let lag = metrics.gauges("session_lag", "How far the receiver is behind", Some(Unit::Seconds));
    let behind = metrics.gauges("session_backlog", "What waits to be shipped", Some(Unit::Bytes));
    let outstanding = metrics.gauges("session_outstanding_sets", "Sets cut and not applied", None);
    let rate = metrics.gauges("session_rate_bytes_per_second", "Sent in the last few seconds", None);
    let applied = metrics.gauges("session_applied_set", "The number of the last set applied", None);
    let warnings = metrics.gauges("session_warnings", "Marks of lag and backlog that are passed", None);
    let shipped = metrics.counters("session_shipped", "Sent", Some(Unit::Bytes));
    let sets = metrics.counters("session_shipped_sets", "Sets that were applied", None);
    let failures = metrics.counters("session_failed_attempts", "Attempts that failed", None);
    for session in sessions {
        let of: Labels = vec![
            ("volume", session.unit.clone()),
            ("peer", session.peer.clone()),
            ("role", session.role.clone()),
        ];
        set(&state, &of.iter().cloned().chain([("state", session.state.clone())]).collect(), 1);
        if let Some(number) = session.applied {
            set(&applied, &of, number);
        }
        if session.role != "sender" {
            continue;
        }
        lag.get_or_create(&of).set(session.lag_seconds);
        set(&behind, &of, session.lag_bytes);
        set(&outstanding, &of, session.outstanding.len() as u64);
        set(&rate, &of, session.rate);
        set(&warnings, &of, session.warnings.len() as u64);
        add(&shipped, &of, session.shipped_bytes);
        add(&sets, &of, session.shipped_sets);
        add(&failures, &of, session.failed_attempts);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::api::{OutstandingSet, ScheduleStatus, SpaceInfo, VolumeStatus};
    use crate::types::OnFull;
    use std::collections::BTreeSet;

    fn answer() -> String {
        let status = Status {
            version: "0.1.0".into(),
            io_engine: "plain".into(),
            space: SpaceInfo { free: 5, total: 10, ..SpaceInfo::default() },
            volumes: vec![VolumeStatus {
                name: "db".into(),
                state: "ok".into(),
                on_full: OnFull::Freeze,
                reserved: 0,
                waiting_writes: 0,
                dropped_snapshots: 0,
                schedule: Some(ScheduleStatus { snapshots: 3, ..ScheduleStatus::default() }),
            }],
            sessions: vec![SessionStatus {
                unit: "db".into(),
                peer: "ssh://far/srv/\"quoted\"\\/db".into(),
                role: "sender".into(),
                state: "following".into(),
                applied: Some(7),
                lag_seconds: 1.5,
                lag_bytes: 8192,
                shipped_bytes: 1 << 40,
                outstanding: vec![OutstandingSet::default()],
                ..SessionStatus::default()
            }],
            ..Status::default()
        };
        let volume = VolumeFigures {
            name: "db".into(),
            role: Role::Primary,
            state: "ok".into(),
            size: 1 << 30,
            in_use: 4096,
            saved: 0,
            journal: 4096,
            reserved: 0,
            snapshots: 2,
            waiting_writes: 0,
            dropped_snapshots: 0,
            clients: (1, 2),
            requests: vec![("read", 3, 12288)],
        };
        text(&status, &[volume])
    }

    #[test]
    fn figures_are_there_and_names_are_escaped() {
        let text = answer();
        for line in [
            "snapvol_space_free_bytes 5.0",
            "snapvol_volume_size_bytes{volume=\"db\"} 1073741824.0",
            "snapvol_volume_requests_total{volume=\"db\",kind=\"read\"} 3",
            "snapvol_volume_requested_bytes_total{volume=\"db\",kind=\"read\"} 12288",
            "snapvol_volume_clients{volume=\"db\",access=\"write\"} 2.0",
            "snapvol_volume_scheduled_snapshots{volume=\"db\"} 3.0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in\n{text}");
        }
        let of = "{volume=\"db\",peer=\"ssh://far/srv/\\\"quoted\\\"\\\\/db\",role=\"sender\"}";
        for line in ["session_lag_seconds", "session_shipped_bytes_total"] {
            assert!(text.contains(&format!("snapvol_{line}{of}")), "{line} in\n{text}");
        }
    }

    /// Every metric is in the page, and the page has no other.
    #[test]
    fn the_page_names_them_all() {
        let page = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/docs/metrics.md")).unwrap();
        let named: BTreeSet<&str> = page
            .lines()
            .filter_map(|line| line.strip_prefix("| `")?.split('`').next())
            .filter(|name| name.starts_with("snapvol_"))
            .collect();
        let text = answer();
        let there: BTreeSet<&str> = text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .filter_map(|line| line.split(['{', ' ']).next())
            .collect();
        assert_eq!(named, there);
    }
}
