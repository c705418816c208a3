//! The loop of a listener.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};

use super::{Slot, Slots};

/// After a failure to accept, such as no descriptor left.
const PAUSE: Duration = Duration::from_millis(100);

/// Where connections come from.
pub trait Accept: Send + 'static {
    /// A connection.
    type Stream: Send + 'static;

    /// The next one. May be dropped at any time.
    fn next(&mut self) -> impl Future<Output = io::Result<Self::Stream>> + Send;
}

impl Accept for UnixListener {
    type Stream = UnixStream;

    async fn next(&mut self) -> io::Result<UnixStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

impl Accept for TcpListener {
    type Stream = TcpStream;

    async fn next(&mut self) -> io::Result<TcpStream> {
        self.accept().await.map(|(stream, _)| stream)
    }
}

/// Gives each connection a task and a place, until `stop` is done. Connections that are open then
/// go on.
pub async fn accept<L, F>(
    mut listener: L,
    slots: Arc<Slots>,
    stop: impl Future,
    converse: impl Fn(L::Stream, Slot) -> F,
) where
    L: Accept,
    F: Future<Output = ()> + Send + 'static,
{
    tokio::pin!(stop);
    loop {
        let accepted = tokio::select! {
            _ = &mut stop => return,
            accepted = listener.next() => accepted,
        };
        match accepted {
            // Without a place it is closed, and whoever it was asks again.
            Ok(stream) => drop(slots.take().map(|slot| tokio::spawn(converse(stream, slot)))),
            Err(error) => {
                tracing::warn!(listener = slots.listener().as_str(), %error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}
