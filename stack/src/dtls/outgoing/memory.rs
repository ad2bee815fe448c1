//! Memory as a source, for clients in the same process: what `sendfile` is to them.

use super::{Outgoing, Run, RunLimits, Then, most_segments};
use crate::dtls::end::{RecordEnd, RecordEvent};
use bytes::Bytes;
use rustix::io::Errno;
use uktls_record::header::ContentType;

/// Memory that is on its way.
#[derive(Debug)]
pub(super) struct MemoryRange {
    bytes: Bytes,
    done: usize,
}

impl MemoryRange {
    pub(super) fn new(bytes: Bytes) -> MemoryRange {
        MemoryRange { bytes, done: 0 }
    }
}

impl Outgoing {
    /// Seals from memory into the buffer: a run, or the range's end.
    pub(super) fn fill_from_memory(
        &mut self,
        end: &mut impl RecordEnd,
        buffer: &mut [u8],
        limits: RunLimits,
    ) -> (Run, Then) {
        let (payload, stride) = self.layout();
        let (Some(range), Some(sealer)) = (&mut self.memory, &mut self.sealer) else {
            return (Run::default(), Then::More);
        };
        let overhead = stride - payload;
        let mut run = Run::default();
        let mut failed = false;
        for _ in 0..most_segments(stride, limits) {
            let plaintext = &range.bytes[range.done..];
            let plaintext = &plaintext[..plaintext.len().min(payload)];
            if plaintext.is_empty() {
                break;
            }
            let sequence = sealer.sequence();
            let record = &mut buffer[run.len..run.len + plaintext.len() + overhead];
            let content_type = ContentType::APPLICATION_DATA;
            if let Err(error) = sealer.seal_from(content_type, plaintext, record) {
                tracing::info!("sending stops: {error}");
                failed = true;
                break;
            }
            end.observe(|| RecordEvent::Sealed {
                sequence,
                content_type,
                plaintext,
            });
            if run.records == 0 {
                run.stride = record.len();
            }
            run.len += record.len();
            run.records += 1;
            range.done += plaintext.len();
            self.sealed += 1;
        }
        let then = if failed {
            Then::Note(Errno::BADMSG)
        } else {
            Then::More
        };
        if failed || range.done == range.bytes.len() {
            end.memory_sealed(range.done);
            self.memory = None;
        }
        (run, then)
    }
}
