//! The io_uring driver.
use super::*;
/// One ring.
pub struct Uring;
impl Uring {
    /// A driver for the calling thread.
    ///
    /// # Errors
    /// No event descriptor.
    pub fn new() -> io::Result<Self> {
        Ok(Self)
    }
}
impl Driver for Uring {
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
