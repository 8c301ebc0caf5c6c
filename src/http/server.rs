//! The server: hyper on tokio's current-thread runtime, on one thread of its own that shares nothing with shards. What is
//! slow, large or many is bounded, so nobody holds it up for others; each request is answered on that thread.

use http_body_util::{BodyExt, Full, Limited};
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CACHE_CONTROL, CONNECTION, CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use std::convert::Infallible;
use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use std::thread::{Builder, JoinHandle};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, oneshot};
use tokio::task::LocalSet;
use tokio::time::timeout;

/// How long a connection that was asked to end may take.
const STOP_DEADLINE: Duration = Duration::from_secs(2);
/// How long accepting pauses when the kernel has no descriptor left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// What a peer may take.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Bounds {
    /// Connections at once; further ones are closed at once.
    pub connections_max: usize,
    /// From the first byte expected to the end of a request's head; also how long a connection may be idle.
    pub head_timeout: Duration,
    /// The head of a request.
    pub head_bytes_max: usize,
    /// From the head to the end of the body.
    pub body_timeout: Duration,
    /// The body.
    pub body_bytes_max: usize,
    /// The life of a connection, whatever it does.
    pub life_max: Duration,
}

impl Default for Bounds {
    fn default() -> Bounds {
        Bounds {
            connections_max: 2_048,
            head_timeout: Duration::from_secs(10),
            head_bytes_max: 16 * 1024,
            body_timeout: Duration::from_secs(10),
            body_bytes_max: 64 * 1024,
            life_max: Duration::from_secs(120),
        }
    }
}

/// What was asked.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Request {
    /// GET, POST and so on.
    pub method: String,
    /// The path, without the query.
    pub path: String,
    /// The body.
    pub body: Vec<u8>,
    /// Who asks.
    pub peer: SocketAddr,
}

/// What is answered.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Reply {
    /// The status code.
    pub status: u16,
    /// What the body is.
    pub content_type: &'static str,
    /// The body.
    pub body: Vec<u8>,
    /// The methods that the path has, when the one asked for is not among them.
    pub allow: Option<&'static str>,
}

impl Reply {
    /// Text.
    pub fn text(status: u16, body: impl Into<String>) -> Reply {
        Reply { status, content_type: "text/plain; charset=utf-8", body: body.into().into_bytes(), allow: None }
    }

    /// JSON.
    pub fn json(status: u16, body: impl Into<String>) -> Reply {
        Reply { content_type: "application/json", ..Reply::text(status, body) }
    }

    /// The path is there, but not for this method.
    pub fn not_allowed(allow: &'static str) -> Reply {
        Reply { allow: Some(allow), ..Reply::text(405, "") }
    }
}

/// A running server. Dropping it stops it.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    stop: Option<oneshot::Sender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Server {
    /// Serves what comes in at `listener` until it is stopped. `answer` runs on the server's thread and must not wait long.
    pub fn start(
        name: &str,
        listener: std::net::TcpListener,
        bounds: Bounds,
        answer: impl FnMut(Request) -> Reply + Send + 'static,
    ) -> io::Result<Server> {
        listener.set_nonblocking(true)?;
        let address = listener.local_addr()?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let (stop, stopped) = oneshot::channel();
        let body = move || serve(&runtime, listener, bounds, answer, stopped);
        let thread = Builder::new().name(name.to_owned()).spawn(body)?;
        Ok(Server { address, stop: Some(stop), thread: Some(thread) })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Takes nobody in any more, lets requests that are being answered end, and returns when all is over.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.end();
    }
}

/// The thread's life.
fn serve(
    runtime: &Runtime,
    listener: std::net::TcpListener,
    bounds: Bounds,
    answer: impl FnMut(Request) -> Reply + 'static,
    stopped: oneshot::Receiver<()>,
) {
    let answer = Rc::new(std::cell::RefCell::new(answer));
    LocalSet::new().block_on(runtime, async move {
        let Ok(listener) = TcpListener::from_std(listener) else { return };
        let places = Arc::new(Semaphore::new(bounds.connections_max));
        let graceful = GracefulShutdown::new();
        let mut stopped = std::pin::pin!(stopped);
        loop {
            let next = poll_fn(|context| match stopped.as_mut().poll(context) {
                Poll::Ready(_) => Poll::Ready(None),
                Poll::Pending => listener.poll_accept(context).map(Some),
            });
            let (stream, peer) = match next.await {
                None => break,
                Some(Ok(accepted)) => accepted,
                Some(Err(_)) => {
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                    continue;
                }
            };
            // Full: whoever is there stays, each within its time, and whoever comes is told by a closed connection.
            let Ok(place) = places.clone().try_acquire_owned() else { continue };
            let connection = connection(stream, peer, bounds, answer.clone(), &graceful);
            tokio::task::spawn_local(async move {
                let _ = timeout(bounds.life_max, connection).await;
                drop(place);
            });
        }
        drop(listener);
        let _ = timeout(STOP_DEADLINE, graceful.shutdown()).await;
    });
}

fn connection<A: FnMut(Request) -> Reply + 'static>(
    stream: TcpStream,
    peer: SocketAddr,
    bounds: Bounds,
    answer: Rc<std::cell::RefCell<A>>,
    graceful: &GracefulShutdown,
) -> impl Future<Output = ()> + use<A> {
    let _ = stream.set_nodelay(true);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let reply = match read(request, peer, bounds).await {
                Ok(request) => (answer.borrow_mut())(request),
                Err(reply) => reply,
            };
            Ok::<_, Infallible>(response(reply))
        }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(bounds.head_timeout)
        .max_buf_size(bounds.head_bytes_max.max(8 * 1024))
        .serve_connection(TokioIo::new(stream), service);
    let watched = graceful.watch(connection);
    async move {
        // A peer that breaks off or speaks nonsense is its own business.
        let _ = watched.await;
    }
}

async fn read(request: hyper::Request<Incoming>, peer: SocketAddr, bounds: Bounds) -> Result<Request, Reply> {
    let method = request.method().as_str().to_owned();
    let path = request.uri().path().to_owned();
    let body = Limited::new(request.into_body(), bounds.body_bytes_max).collect();
    match timeout(bounds.body_timeout, body).await {
        Ok(Ok(body)) => Ok(Request { method, path, body: body.to_bytes().to_vec(), peer }),
        Ok(Err(error)) if error.is::<http_body_util::LengthLimitError>() => Err(closing(413, "the body is too long")),
        Ok(Err(_)) => Err(closing(400, "the body was cut off")),
        Err(_) => Err(closing(408, "the body did not come in time")),
    }
}

fn closing(status: u16, sentence: &str) -> Reply {
    Reply::text(status, sentence)
}

fn response(reply: Reply) -> hyper::Response<Full<Bytes>> {
    let ends = matches!(reply.status, 400 | 408 | 413);
    let mut response = hyper::Response::new(Full::new(Bytes::from(reply.body)));
    *response.status_mut() =
        hyper::StatusCode::from_u16(reply.status).unwrap_or(hyper::StatusCode::INTERNAL_SERVER_ERROR);
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(reply.content_type));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    if let Some(allow) = reply.allow {
        headers.insert(ALLOW, HeaderValue::from_static(allow));
    }
    // What is left of a body that was not read must not be taken for the next request.
    if ends {
        headers.insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

#[cfg(test)]
#[path = "server_tests.rs"]
mod tests;
