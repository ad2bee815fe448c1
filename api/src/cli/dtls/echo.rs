//! `uktls dtls-echo`: what comes goes back, through a pipe by `splice`, a record at a time.

use super::super::{Context, Failure, Globals, Outcome};
use super::association::{self, Heard, Meeting, Voice, done, pace, records};
use super::options::EchoArgs;
use super::recv::losses;
use serde_json::json;
use std::io;
use std::process::ExitCode;
use std::time::Instant;

/// Largest plaintext of a record.
const RECORD: usize = 1 << 14;

/// Echoes.
pub(crate) fn run(args: EchoArgs, globals: &Globals) -> Outcome {
    // A server has no other end than a signal.
    let interrupted = match args.peer.role.listen {
        Some(_) => Ok(ExitCode::SUCCESS),
        None => association::broken_off(),
    };
    association::run(args.peer, globals, false, interrupted, |meeting, voice| {
        if !meeting.is_server() {
            return echo(&meeting, voice).and_then(|()| done());
        }
        loop {
            // A peer that fails is no reason not to take the next one.
            if let Err(failure) = echo(&meeting, voice) {
                tracing::info!("{failure}");
            }
        }
    })
}

fn echo(meeting: &Meeting, voice: Voice) -> Result<(), Failure> {
    let mut association = meeting.associate()?;
    let peer = association.peer()?;
    let failed = || format!("cannot echo to {peer}");
    let (reader, writer) = io::pipe().context(failed)?;
    let (mut bytes, mut echoed, mut last) = (0, 0, Instant::now());
    let closed = loop {
        match association.wait(meeting.limit())? {
            Heard::Record => {}
            Heard::Close => break true,
            Heard::Silence => break false,
        }
        let len = association
            .ktls
            .splice_to(&writer, RECORD)
            .context(failed)?;
        // A record goes back as one: its plaintext alone is in the pipe.
        association.ktls.splice_from(&reader, len).context(failed)?;
        bytes += len as u64;
        echoed += 1;
        last = Instant::now();
    };
    let time = last - association.begun;
    let (lost, unread, cipher) = (
        association.lost()?,
        association.unread()?,
        association.cipher(),
    );
    association.close()?;
    voice.say(
        &json!({
            "peer": peer.to_string(),
            "cipher": cipher,
            "bytes": bytes,
            "records": echoed,
            "missing": lost,
            "unread": unread,
            "closed": closed,
            "seconds": time.as_secs_f64(),
        }),
        &format!(
            "{peer}: {bytes} bytes in {} {}, {cipher}; {}",
            records(echoed),
            pace(bytes, time),
            losses(lost, unread),
        ),
    )?;
    if closed {
        Ok(())
    } else {
        Err(Failure::new(format_args!(
            "{peer} fell silent and did not say close_notify"
        )))
    }
}
