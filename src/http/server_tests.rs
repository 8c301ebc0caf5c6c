//! Client and server against each other and against peers that are slow, greedy or gone.

use super::super::{Believed, Client, ClientError};
use super::*;
use std::io::{Read, Write};
use std::time::Instant;

const PATIENCE: Duration = Duration::from_secs(20);

fn bounds() -> Bounds {
    Bounds { head_timeout: Duration::from_millis(300), body_timeout: Duration::from_millis(300), ..Bounds::default() }
}

/// Answers with what was asked.
fn echo(bounds: Bounds) -> Server {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    Server::start("http-test", listener, bounds, |request| match request.path.as_str() {
        "/long" => Reply::text(200, "x".repeat(1024 * 1024)),
        "/binary" => Reply { body: vec![0xff; 8], ..Reply::text(200, "") },
        "/away" => Reply::text(302, ""),
        "/method" => Reply::not_allowed("POST"),
        _ => {
            Reply::text(200, format!("{} {} {}", request.method, request.path, String::from_utf8_lossy(&request.body)))
        }
    })
    .unwrap()
}

fn ask(server: &Server, path: &str, body: &str) -> Result<super::super::Answer, ClientError> {
    Client::new("test", Believed::Public).post(&format!("http://{}{path}", server.address()), body, PATIENCE)
}

fn raw(server: &Server, text: &str) -> std::net::TcpStream {
    let mut stream = std::net::TcpStream::connect(server.address()).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.write_all(text.as_bytes()).unwrap();
    stream
}

fn rest(mut stream: std::net::TcpStream) -> String {
    let mut text = Vec::new();
    // Closed with bytes unread, the kernel says so by a reset: what came before it counts.
    let _ = stream.read_to_end(&mut text);
    String::from_utf8_lossy(&text).into_owned()
}

#[test]
fn a_question_gets_its_answer_and_a_redirection_is_not_followed() {
    let server = echo(bounds());
    let answer = ask(&server, "/v1?x=1", "{}").unwrap();
    assert_eq!((answer.status, answer.body.as_str()), (200, "POST /v1 {}"));
    assert_eq!(ask(&server, "/away", "").unwrap().status, 302);
    assert_eq!(ask(&server, "/method", "").unwrap().status, 405);
    assert_eq!(ask(&server, "/long", ""), Err(ClientError::TooLong));
    assert_eq!(ask(&server, "/binary", ""), Err(ClientError::NotText));
    assert_eq!(ask(&server, "/", &"x".repeat(65 * 1024)).unwrap().status, 413);
    server.stop();
}

#[test]
fn five_hundred_slow_peers_hold_nobody_up_and_are_let_go() {
    let server = echo(bounds());
    let mut slow = Vec::new();
    for index in 0..500 {
        let text =
            ["", "POST / HT", "POST / HTTP/1.1\r\nHost: a\r\n", "POST / HTTP/1.1\r\nContent-Length: 9\r\n\r\n12"];
        slow.push(raw(&server, text[index % 4]));
    }
    let begun = Instant::now();
    for _ in 0..20 {
        assert_eq!(ask(&server, "/", "").unwrap().status, 200);
    }
    let took = begun.elapsed();
    eprintln!("20 requests beside 500 slow connections: {took:?}");
    assert!(took < Duration::from_secs(5), "{took:?}");
    for stream in slow {
        let text = rest(stream);
        assert!(text.is_empty() || text.starts_with("HTTP/1.1 408"), "{text}");
    }
    server.stop();
}

#[test]
fn beyond_its_connections_a_server_closes_new_ones_and_keeps_the_others() {
    let server = echo(Bounds { connections_max: 2, ..Bounds::default() });
    let mut first = raw(&server, "GET /a HTTP/1.1\r\n");
    let _second = raw(&server, "GET");
    // The two are in when the third, which came later, has been closed.
    assert_eq!(rest(raw(&server, "")), "");
    first.write_all(b"Connection: close\r\n\r\n").unwrap();
    assert!(rest(first).contains("GET /a "));
    server.stop();
}

#[test]
fn nonsense_is_refused_and_an_endless_head_is_bounded() {
    let server = echo(bounds());
    assert!(rest(raw(&server, "\0\0\0\r\n\r\n")).starts_with("HTTP/1.1 400"));
    let endless = format!("GET / HTTP/1.1\r\n{}", "x: y\r\n".repeat(2_000));
    let said = rest(raw(&server, &endless));
    assert!(said.starts_with("HTTP/1.1 431") || said.starts_with("HTTP/1.1 400"), "{said}");
    assert_eq!(ask(&server, "/", "").unwrap().status, 200);
}

#[test]
fn stopping_lets_an_answer_end_and_frees_the_port() {
    let (entered_in, entered) = std::sync::mpsc::channel();
    let (go_on, wait) = std::sync::mpsc::channel::<()>();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let server = Server::start("http-test", listener, Bounds::default(), move |_| {
        entered_in.send(()).unwrap();
        wait.recv().unwrap();
        Reply::text(200, "done")
    })
    .unwrap();
    let address = server.address();
    let idle = std::net::TcpStream::connect(address).unwrap();
    let asking = raw(&server, "GET / HTTP/1.1\r\n\r\n");
    entered.recv().unwrap();
    let stopping = std::thread::spawn(move || server.stop());
    go_on.send(()).unwrap();
    assert!(rest(asking).ends_with("done"));
    stopping.join().unwrap();
    drop(idle);
    assert!(std::net::TcpStream::connect(address).is_err());
}

#[test]
fn the_client_gives_up_in_time_whatever_the_server_does() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let (done_in, done) = std::sync::mpsc::channel::<()>();
    let peer = std::thread::spawn(move || {
        // The first is never answered, the second gets a byte now and then, for ever.
        let (_silent, _) = listener.accept().unwrap();
        let (mut dripping, _) = listener.accept().unwrap();
        let _ = dripping.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n");
        while done.recv_timeout(Duration::from_millis(20)).is_err() {
            let _ = dripping.write_all(b"x");
        }
    });
    for _ in 0..2 {
        let begun = Instant::now();
        let error = Client::new("test", Believed::Public).post(&url, "{}", Duration::from_millis(400)).unwrap_err();
        assert!(matches!(error, ClientError::Unreachable(_)), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(3), "{:?}", begun.elapsed());
    }
    done_in.send(()).unwrap();
    peer.join().unwrap();
    assert!(
        matches!(Client::new("test", Believed::Public).post(&url, "", PATIENCE), Err(ClientError::Unreachable(_))),
        "nobody is there"
    );
}
