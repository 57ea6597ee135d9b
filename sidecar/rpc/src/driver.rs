//! The cores over a byte stream.

use std::{
    future::Future,
    io,
    time::{Duration, Instant},
};

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};

use crate::{
    calls::{Calls, Outcome},
    frame::{self, Failure, Frame, Reason},
    serving::{Action, Serving},
};

/// Bytes read at once.
const READ: usize = 16 * 1024;

/// Makes one call over a connection that carries no other, and waits for its outcome.
///
/// # Errors
/// When the connection fails; a call that fails is the inner error.
pub async fn call<S: AsyncRead + AsyncWrite + Unpin>(
    stream: &mut S,
    method: u32,
    body: Vec<u8>,
    within: Duration,
) -> io::Result<Outcome> {
    let mut calls = Calls::default();
    let request = match calls.begin(method, body, within, Instant::now()) {
        Ok(request) => request,
        Err(busy) => return Ok(Err(busy)),
    };
    stream.write_all(&request.to_stream()).await?;
    let answer = async {
        let mut buffer = Vec::new();
        loop {
            let Some(frame) = next(stream, &mut buffer).await? else {
                return Err(io::ErrorKind::UnexpectedEof.into());
            };
            if let Some((_, outcome)) = calls.handle(frame) {
                return Ok(outcome);
            }
        }
    };
    match tokio::time::timeout(within, answer).await {
        Ok(outcome) => outcome,
        Err(_) => Ok(Err(Failure::new(Reason::Late, "there was no answer in time"))),
    }
}

/// Answers the calls of one connection, one after the other, until it ends.
///
/// # Errors
/// When the connection fails or speaks another protocol.
pub async fn serve<S, H, F>(mut stream: S, handler: H) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    H: Fn(u32, Vec<u8>) -> F,
    F: Future<Output = Outcome>,
{
    let mut serving = Serving::default();
    let mut buffer = Vec::new();
    while let Some(frame) = next(&mut stream, &mut buffer).await? {
        match serving.handle(frame, Instant::now()) {
            Action::Run { call, method, body, until } => {
                let answered = tokio::time::timeout_at(until.into(), handler(method, body)).await;
                serving.ended(call);
                match answered {
                    Ok(Ok(body)) => {
                        for frame in frame::answer(call, &body) {
                            stream.write_all(&frame.to_stream()).await?;
                        }
                    }
                    Ok(Err(failure)) => {
                        stream.write_all(&frame::failure(call, &failure).to_stream()).await?
                    }
                    Err(_) => {
                        let failure = Failure::new(Reason::Late, "there was no answer in time");
                        stream.write_all(&frame::failure(call, &failure).to_stream()).await?;
                    }
                }
            }
            Action::Refuse(frame) => stream.write_all(&frame.to_stream()).await?,
            Action::Stop { .. } | Action::Nothing => {}
        }
    }
    Ok(())
}

/// The next frame; `None` at the connection's end.
async fn next<S: AsyncRead + Unpin>(
    stream: &mut S,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<Frame>> {
    loop {
        match frame::take(buffer) {
            Ok(Some(frame)) => return Ok(Some(frame)),
            Ok(None) => {}
            Err(_) => return Err(io::ErrorKind::InvalidData.into()),
        }
        let filled = buffer.len();
        buffer.resize(filled + READ, 0);
        let read = stream.read(buffer.get_mut(filled..).unwrap_or_default()).await;
        buffer.truncate(filled + *read.as_ref().unwrap_or(&0));
        if read? == 0 {
            return Ok(None);
        }
    }
}
