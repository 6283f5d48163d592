//! What requests may reach is a matter of whoever runs the command, and not of the workflow.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on fails")]

mod place;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::thread::JoinHandle;

use place::Place;

/// Answers one request on this machine. Returns its port, and a thread that ends with what was asked.
fn server() -> (u16, JoinHandle<String>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let thread = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut asked = vec![0; 64];
        let length = stream.read(&mut asked).unwrap();
        stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi").unwrap();
        String::from_utf8_lossy(&asked[..length]).into_owned()
    });
    (port, thread)
}

fn place(port: u16) -> Place {
    let place = Place::empty();
    let workflow =
        format!("name: ask\nnodes: {{ ask: {{ http: 'http://localhost:{port}/?key=hush', retry: 3 }} }}\n");
    place.write("ask.yaml", &workflow);
    place
}

#[test]
fn an_address_of_this_machine_is_refused_at_once_with_what_would_allow_it() {
    let (port, _server) = server();
    let place = place(port);
    let done = place.retake(&["--json", "run", "ask.yaml", "--name", "ask"]);
    assert_eq!(done.code, 1, "{}", done.stderr);
    let why = "no request is sent to `localhost`: its address 127.0.0.1 is of this machine; whoever runs this may \
               allow it with `--allow-network localhost` or RETAKE_ALLOW_NETWORK";
    assert!(done.stderr.contains(why), "{}", done.stderr);
    assert!(!done.stdout.contains("node_retry") && !done.stdout.contains("hush"), "{}", done.stdout);
}

#[test]
fn what_the_command_line_or_the_environment_lists_is_reached() {
    let list = "10.0.0.0/8, 127.0.0.0/8";
    for (flags, variable) in [(&["--allow-network", list][..], ""), (&[][..], list)] {
        let (port, server) = server();
        let place = place(port);
        let mut command = place.command(&[flags, &["run", "ask.yaml"]].concat());
        let output = command.env("RETAKE_ALLOW_NETWORK", variable).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stderr));
        assert!(server.join().unwrap().starts_with("GET /?key=hush"));
    }
}

#[test]
fn a_list_or_a_proxy_that_is_none_is_an_error_of_the_command_line() {
    let place = place(1);
    place.refused(
        &["--allow-network", "10.0.0.1/8", "run", "ask.yaml"],
        2,
        "the range `10.0.0.1/8` begins within itself: write `10.0.0.0/8`",
    );
    let error =
        place.refused(&["--proxy", "socks5://me:pass@a", "run", "ask.yaml"], 2, "the proxy's address");
    assert!(!error.to_string().contains("pass"));
}
