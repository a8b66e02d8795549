//! The plain driver.
use super::*;
/// pread, pwrite, poll and a few helper threads.
pub struct Plain;
impl Plain {
    /// A driver for the calling thread.
    ///
    /// # Errors
    /// No event descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self)
    }
}
impl Driver for Plain {
    fn submit(&mut self, _: OpId, _: Op) -> Option<Outcome> {
        todo!()
    }
    fn adopt(&mut self, _: std::os::fd::OwnedFd) -> io::Result<FileId> {
        todo!()
    }
    fn wait(&mut self, _: Option<Duration>, _: &mut Vec<(OpId, Outcome)>) {
        todo!()
    }
    fn waker(&self) -> Arc<dyn Wake> {
        todo!()
    }
    fn boot_id(&self) -> [u8; 16] {
        todo!()
    }
}
