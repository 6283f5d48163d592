//! Where Prometheus asks for measurements: `GET /metrics`, and nothing else of HTTP.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;

use super::exposition::{self, CONTENT_TYPE};
use super::meters::Meters;
use crate::failure::{Code, Failure};
use crate::output::Output;

/// How large a request may be.
const REQUEST_BYTES_MAX: usize = 8 * 1024;

/// How long a client may take, from its connection to the end of the answer.
const CLIENT_TIME_MAX: Duration = Duration::from_secs(5);

/// How many clients are answered at the same time. More wait to be accepted.
const CLIENTS_MAX: usize = 16;

/// How long after a failure the next connection is accepted: the process may be out of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Begins to measure, and to answer at an address for as long as the command runs.
pub(super) async fn open(address: &str, output: &Output) -> Result<(), Failure> {
    let listener = listen(&with_host(address)).await.map_err(|error| {
        Failure::caused(Code::Usage, format!("metrics cannot be served at `{address}`"), &error)
            .hint("name a free port, as `--metrics 9464`, or an address, as `--metrics 0.0.0.0:9464`")
    })?;
    let meters = Meters::default();
    // Fails where the program measures already.
    let _measuring = metrics::set_global_recorder(meters.clone());
    retake::telemetry::measure();
    if let Ok(address) = listener.local_addr() {
        output.note(format!("metrics at http://{address}/metrics"));
    }
    tokio::spawn(serve(listener, meters));
    Ok(())
}

/// Returns the address to listen at: on this machine alone, unless a host is named.
fn with_host(address: &str) -> String {
    let port = address.strip_prefix(':').unwrap_or(address);
    if port.parse::<u16>().is_ok() { format!("127.0.0.1:{port}") } else { address.to_owned() }
}

async fn listen(address: &str) -> io::Result<TcpListener> {
    let addresses: Vec<SocketAddr> = tokio::net::lookup_host(address).await?.collect();
    TcpListener::bind(addresses.as_slice()).await
}

async fn serve(listener: TcpListener, meters: Meters) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    while let Ok(place) = Arc::clone(&places).acquire_owned().await {
        match listener.accept().await {
            Ok((stream, _)) => {
                let meters = meters.clone();
                tokio::spawn(async move {
                    let _gone_or_slow = tokio::time::timeout(CLIENT_TIME_MAX, answer(stream, &meters)).await;
                    drop(place);
                });
            }
            Err(_) => tokio::time::sleep(ACCEPT_PAUSE).await,
        }
    }
}

async fn answer(mut stream: TcpStream, meters: &Meters) -> io::Result<()> {
    let mut request = Vec::new();
    let mut buffer = [0; 1024];
    let end = loop {
        if let Some(end) = request.windows(4).position(|bytes| bytes == b"\r\n\r\n") {
            break Some(end);
        }
        match stream.read(&mut buffer).await? {
            0 => break None,
            read if request.len() + read > REQUEST_BYTES_MAX => break None,
            read => request.extend_from_slice(&buffer[..read]),
        }
    };
    let head = end.map(|end| String::from_utf8_lossy(&request[..end]).into_owned());
    let (status, body) = response(head.as_deref(), meters);
    let head = format!(
        "HTTP/1.1 {status}\r\ncontent-type: {CONTENT_TYPE}\r\ncontent-length: {}\r\nconnection: close\r\n\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).await?;
    stream.write_all(body.as_bytes()).await?;
    stream.shutdown().await
}

fn response(head: Option<&str>, meters: &Meters) -> (&'static str, String) {
    let Some(head) = head else { return ("400 Bad Request", "that is no request\n".to_owned()) };
    let mut words = head.lines().next().unwrap_or_default().split(' ');
    let (method, target) = (words.next().unwrap_or_default(), words.next().unwrap_or_default());
    let path = target.split('?').next().unwrap_or_default();
    match (method, path) {
        ("GET", "/metrics") => ("200 OK", exposition::text(meters)),
        ("GET", _) => ("404 Not Found", "metrics are at /metrics\n".to_owned()),
        _ => ("405 Method Not Allowed", "only GET is answered\n".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn ask(request: &[u8]) -> String {
        let listener = listen(&with_host(":0")).await.unwrap();
        let address = listener.local_addr().unwrap();
        assert!(address.ip().is_loopback());
        let serving = tokio::spawn(serve(listener, Meters::default()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(request).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        serving.abort();
        answer
    }

    #[tokio::test]
    async fn only_metrics_are_answered() {
        let answer = ask(b"GET /metrics?x HTTP/1.1\r\nhost: a\r\n\r\n").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n"), "{answer}");
        assert!(answer.contains("\ntarget_info{service_name=\"retake\""), "{answer}");
        assert!(ask(b"GET /else HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 404 "));
        assert!(ask(b"POST /metrics HTTP/1.1\r\n\r\n").await.starts_with("HTTP/1.1 405 "));
    }

    #[tokio::test]
    async fn a_request_that_does_not_end_is_refused() {
        let answer = ask(&vec![b'x'; REQUEST_BYTES_MAX + 1]).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{answer}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_client_that_is_slow_is_left() {
        let listener = listen("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve(listener, Meters::default()));
        let mut stream = TcpStream::connect(address).await.unwrap();
        stream.write_all(b"GET /metrics HTTP/1.1\r\n").await.unwrap();
        let mut answer = Vec::new();
        // The clock moves on as soon as everybody waits.
        stream.read_to_end(&mut answer).await.unwrap();
        assert_eq!(answer, b"");
        serving.abort();
    }
}
