//! What is refused, however it is written; and that what is connected to is what was checked.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::net::TcpListener;

use super::super::http::HttpHandler;
use super::super::stand_in::{Attempt, Server, answer};
use super::*;
use crate::engine::NodeError;
use crate::workflow::{Http, Method, Node, NodeKind};

use AddressKind::*;

/// Addresses as a workflow may write them, and what becomes of each.
const TABLE: [(&str, AddressKind); 76] = [
    ("http://127.0.0.1/", Loopback),
    ("http://127.0.0.1:8080/", Loopback),
    ("https://127.255.255.254/", Loopback),
    ("http://127.1/", Loopback),
    ("http://127.0.1/", Loopback),
    ("http://2130706433/", Loopback),
    ("http://0x7f000001/", Loopback),
    ("http://0x7f.0.0.1/", Loopback),
    ("http://0177.0.0.1/", Loopback),
    ("http://017700000001/", Loopback),
    ("http://127.0.0.1./", Loopback),
    ("http://①②⑦.⓪.⓪.①/", Loopback),
    ("http://127。0。0。1/", Loopback),
    ("http://%31%32%37.0.0.1/", Loopback),
    ("http://me:pass@127.0.0.1/", Loopback),
    ("http://example.org@127.0.0.1/", Loopback),
    ("http:\\\\127.0.0.1\\", Loopback),
    ("http://localhost/", Loopback),
    ("http://LOCALHOST:631/", Loopback),
    ("http://localhost./", Loopback),
    ("http://a.localhost/", Loopback),
    ("http://[::1]/", Loopback),
    ("http://[0:0:0:0:0:0:0:1]/", Loopback),
    ("http://[::ffff:127.0.0.1]/", Loopback),
    ("http://[::ffff:7f00:1]/", Loopback),
    ("http://[::127.0.0.1]/", Loopback),
    ("http://[64:ff9b::127.0.0.1]/", Loopback),
    ("http://[2002:7f00:1::]/", Loopback),
    ("http://0.0.0.0/", Unspecified),
    ("http://0/", Unspecified),
    ("http://[::]/", Unspecified),
    ("http://[::ffff:0.0.0.0]/", Unspecified),
    ("http://10.0.0.1/", Private),
    ("http://10.255.255.255/", Private),
    ("http://167772161/", Private),
    ("http://172.16.0.1/", Private),
    ("http://172.31.255.255/", Private),
    ("http://192.168.1.1/", Private),
    ("http://0xc0a80101/", Private),
    ("http://[::ffff:192.168.1.1]/", Private),
    ("http://[64:ff9b::a00:1]/", Private),
    ("http://[2002:c0a8:101::1]/", Private),
    ("http://[fc00::1]/", Private),
    ("http://[fdff:ffff::1]/", Private),
    ("http://[fec0::1]/", Private),
    ("http://169.254.0.1/", LinkLocal),
    ("http://[fe80::1]/", LinkLocal),
    ("http://[febf::1]/", LinkLocal),
    ("http://100.64.0.1/", Shared),
    ("http://100.127.255.255/", Shared),
    ("http://169.254.169.254/latest/meta-data/", Metadata),
    ("http://2852039166/", Metadata),
    ("http://0251.0376.0251.0376/", Metadata),
    ("http://[::ffff:169.254.169.254]/", Metadata),
    ("http://[64:ff9b::a9fe:a9fe]/", Metadata),
    ("http://[fd00:ec2::254]/", Metadata),
    ("http://169.254.170.2/", Metadata),
    ("http://100.100.100.200/", Metadata),
    ("http://168.63.129.16/", Metadata),
    ("http://metadata.google.internal/", Metadata),
    ("http://METADATA.google.internal./", Metadata),
    ("http://192.0.2.1/", Documentation),
    ("http://198.51.100.1/", Documentation),
    ("http://203.0.113.1/", Documentation),
    ("http://[2001:db8::1]/", Documentation),
    ("http://198.18.0.1/", Benchmarking),
    ("http://224.0.0.1/", Multicast),
    ("http://[ff02::1]/", Multicast),
    ("http://255.255.255.255/", Reserved),
    ("http://240.0.0.1/", Reserved),
    ("http://192.0.0.1/", Reserved),
    ("http://[64:ff9b:1::1]/", Reserved),
    ("http://[2001::1]/", Reserved),
    ("http://[100::1]/", Reserved),
    ("http://[::8.8.8.8]/", Reserved),
    ("http://[5f00::1]/", Reserved),
];

/// Addresses that are anybody's, or that nothing can be said of before they are looked up.
const PUBLIC: [&str; 14] = [
    "https://example.org/",
    "http://8.8.8.8/",
    "http://134744072/",
    "http://9.255.255.255/",
    "http://11.0.0.0/",
    "http://100.63.255.255/",
    "http://100.128.0.0/",
    "http://172.15.255.255/",
    "http://172.32.0.0/",
    "http://[2606:4700::1111]/",
    "http://[64:ff9b::8.8.8.8]/",
    "http://[::ffff:8.8.8.8]/",
    "http://[2002:808:808::1]/",
    "http://localhost.example.org/",
];

fn check(network: &Network, url: &str) -> Result<(), NetworkRefusal> {
    network.check(&Url::parse(url).unwrap())
}

#[test]
fn what_is_not_public_is_refused_however_it_is_written() {
    let network = Network::public();
    for (url, wanted) in TABLE {
        match check(&network, url) {
            Err(NetworkRefusal::NotPublic { kind, .. }) => assert_eq!(kind, wanted, "{url}"),
            other => panic!("{url}: {other:?}"),
        }
    }
    for url in PUBLIC {
        assert_eq!(check(&network, url), Ok(()), "{url}");
    }
}

#[test]
fn a_refusal_tells_the_host_the_address_and_what_allows_it_and_no_secret() {
    let refusal = check(&Network::public(), "http://me:pass@127.0.0.1/p?key=hush").unwrap_err();
    assert_eq!(
        refusal.to_string(),
        "no request is sent to `127.0.0.1`: its address 127.0.0.1 is of this machine; whoever runs this may allow it \
         with `--allow-network 127.0.0.1` or RETAKE_ALLOW_NETWORK"
    );
    let metadata = check(&Network::public(), "http://metadata.google.internal/").unwrap_err();
    assert!(metadata.to_string().contains("`--allow-network 169.254.169.254`"), "{metadata}");
}

#[test]
fn what_is_allowed_is_reached_and_its_neighbours_are_not() {
    for (list, url, is_allowed) in [
        ("127.0.0.0/8", "http://127.9.9.9/", true),
        ("127.0.0.0/8", "http://[::ffff:127.0.0.1]/", true),
        ("127.0.0.0/8", "http://localhost/", true),
        ("127.0.0.0/8", "http://[::1]/", false),
        ("10.1.2.3", "http://10.1.2.3/", true),
        ("10.1.2.3", "http://10.1.2.4/", false),
        ("10.0.0.0/31", "http://10.0.0.1/", true),
        ("10.0.0.0/31", "http://10.0.0.2/", false),
        ("0.0.0.0/0", "http://10.0.0.1/", true),
        ("0.0.0.0/0", "http://[fc00::1]/", false),
        ("[fd12::]/16", "http://[fd12:1::1]/", true),
        ("fd12::1", "http://[fd12::2]/", false),
        ("localhost", "http://localhost:8080/", true),
        ("LocalHost.", "http://localhost./", true),
        ("localhost", "http://127.0.0.1/", false),
        ("a.internal, 10.0.0.0/8 ,", "http://10.0.0.1/", true),
        ("169.254.0.0/16", "http://169.254.1.1/", true),
        ("169.254.0.0/16", "http://169.254.169.254/", false),
        ("0.0.0.0/0,::/0", "http://[fd00:ec2::254]/", false),
        ("169.254.169.254", "http://169.254.169.254/", true),
        ("169.254.169.254", "http://[::ffff:169.254.169.254]/", true),
        ("metadata.google.internal", "http://metadata.google.internal/", true),
        ("metadata.google.internal", "http://169.254.169.254/", false),
    ] {
        let network = Network::public().allowing(list).unwrap();
        assert_eq!(check(&network, url).is_ok(), is_allowed, "{list}: {url}");
    }
}

#[test]
fn a_list_that_is_none_is_refused_with_what_is_wrong() {
    for entry in
        ["10.0.0.0/33", "10.0.0.0/-1", "10/8", "::/129", "http://a", "a:80", "*.internal", "a/b", "a b"]
    {
        let error = Network::public().allowing(entry).unwrap_err();
        assert_eq!(error, NetworkError::Entry { entry: entry.to_owned() });
    }
    let error = Network::public().allowing("b, 10.1.2.3/8").unwrap_err();
    assert_eq!(error.to_string(), "the range `10.1.2.3/8` begins within itself: write `10.0.0.0/8`");
    for proxy in ["socks5://a:1", "no address", "file:///a"] {
        let error = Network::public().with_proxy(proxy).unwrap_err();
        assert_eq!(error, NetworkError::Proxy);
        assert!(!error.to_string().contains(proxy));
    }
}

/// Gives each question the next of its answers, and the last one from then on.
#[derive(Debug)]
struct Changing {
    answers: Mutex<BTreeMap<String, Vec<Vec<IpAddr>>>>,
    asked: Arc<AtomicUsize>,
}

impl Changing {
    fn new(host: &str, answers: &[&[Ipv4Addr]]) -> (Self, Arc<AtomicUsize>) {
        let answers =
            answers.iter().rev().map(|answer| answer.iter().copied().map(IpAddr::from).collect()).collect();
        let asked = Arc::new(AtomicUsize::new(0));
        (Self { answers: Mutex::new([(host.to_owned(), answers)].into()), asked: Arc::clone(&asked) }, asked)
    }
}

#[async_trait::async_trait]
impl Resolver for Changing {
    async fn resolve(&self, host: &str) -> io::Result<Vec<IpAddr>> {
        self.asked.fetch_add(1, Ordering::Relaxed);
        let mut answers = self.answers.lock().unwrap();
        let left = answers.get_mut(host).ok_or_else(|| io::Error::other("no such host"))?;
        Ok(if left.len() > 1 { left.pop().unwrap() } else { left[0].clone() })
    }
}

/// Stands in for a public address: it is allowed.
const OPEN: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 2);

/// Stands in for a private one: it is not.
const CLOSED: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 3);

/// A server at the open address, and a socket at the closed one's same port that nothing must connect to.
async fn open_and_closed(answers: impl IntoIterator<Item = Vec<u8>>) -> (Server, TcpListener, u16) {
    loop {
        let closed = TcpListener::bind((CLOSED, 0)).await.unwrap();
        let port = closed.local_addr().unwrap().port();
        // Another test may have the port at this address.
        let Ok(open) = TcpListener::bind(SocketAddr::from((OPEN, port))).await else { continue };
        return (Server::at(open, answers), closed, port);
    }
}

/// Far longer than anything here takes: what reaches it has failed.
const PATIENCE: Duration = Duration::from_secs(10);

async fn send(network: &Network, http: Http) -> Result<Value, NodeError> {
    let attempt = Attempt::new(Node::new(NodeKind::Http(http)));
    let made = attempt.make(HttpHandler::within(network.clone()));
    tokio::time::timeout(PATIENCE, made).await.expect("it ends in time")
}

async fn get(network: &Network, url: String) -> Result<Value, NodeError> {
    send(network, Http::new(url)).await
}

fn open() -> Network {
    Network::public().allowing(&OPEN.to_string()).unwrap()
}

/// Tells whether nobody has connected.
async fn is_untouched(closed: &TcpListener) -> bool {
    tokio::select! {
        biased;
        _ = closed.accept() => false,
        () = std::future::ready(()) => true,
    }
}

#[tokio::test]
async fn a_name_that_changes_its_address_is_never_reached_at_the_private_one() {
    let (mut server, closed, port) = open_and_closed([answer("200 OK", "open")]).await;
    let (resolver, asked) = Changing::new("rebind.example", &[&[OPEN], &[CLOSED]]);
    let network = open().with_resolver(resolver);
    let url = format!("http://rebind.example:{port}/");
    assert_eq!(get(&network, url.clone()).await.unwrap(), json!("open"));
    assert!(server.received().await.head.contains("host: rebind.example"));
    assert_eq!(asked.load(Ordering::Relaxed), 1);
    let error = get(&network, url).await.unwrap_err();
    assert_eq!(asked.load(Ordering::Relaxed), 2);
    assert!(
        error.message().contains("`rebind.example`: its address 127.0.0.3 is of this machine"),
        "{error}"
    );
    assert!(!error.is_retryable());
    assert!(is_untouched(&closed).await);
    // What is looked for would be seen.
    let control = Network::public().allowing("rebind.example").unwrap();
    let (resolver, _) = Changing::new("rebind.example", &[&[CLOSED]]);
    let request = tokio::spawn(async move {
        get(&control.with_resolver(resolver), format!("http://rebind.example:{port}/")).await
    });
    assert_eq!(closed.accept().await.unwrap().1.ip(), Ipv4Addr::LOCALHOST);
    request.abort();
}

#[tokio::test]
async fn of_several_addresses_only_those_that_are_allowed_are_used() {
    let (_server, closed, port) = open_and_closed([answer("200 OK", "open")]).await;
    let (resolver, _) = Changing::new("both.example", &[&[CLOSED, OPEN]]);
    let network = open().with_resolver(resolver);
    assert_eq!(get(&network, format!("http://both.example:{port}/")).await.unwrap(), json!("open"));
    assert!(is_untouched(&closed).await);
}

#[tokio::test]
async fn no_redirect_leads_to_a_private_address() {
    for (to, host) in [
        ("http://127.0.0.3:PORT/", "127.0.0.3"),
        ("//127.0.0.3:PORT/", "127.0.0.3"),
        ("http://2130706435:PORT/", "127.0.0.3"),
        ("http://[::ffff:127.0.0.3]:PORT/", "[::ffff:7f00:3]"),
        ("http://inside.example:PORT/", "inside.example"),
        ("http://169.254.169.254/latest/meta-data/", "169.254.169.254"),
        ("http://metadata.google.internal/", "metadata.google.internal"),
    ] {
        // The port is only known once the server is there: it redirects to itself, and from there on.
        let (resolver, _) = Changing::new("inside.example", &[&[CLOSED]]);
        let network = open().with_resolver(resolver);
        let (closed, port, server) = loop {
            let closed = TcpListener::bind((CLOSED, 0)).await.unwrap();
            let port = closed.local_addr().unwrap().port();
            let Ok(open) = TcpListener::bind(SocketAddr::from((OPEN, port))).await else { continue };
            let to = to.replace("PORT", &port.to_string());
            break (closed, port, Server::at(open, [answer(&format!("302 Found\r\nlocation: {to}"), "")]));
        };
        let error = get(&network, format!("http://127.0.0.2:{port}/")).await.unwrap_err();
        assert!(error.message().starts_with(&format!("no request is sent to `{host}`: ")), "{to}: {error}");
        assert!(!error.is_retryable());
        assert!(is_untouched(&closed).await, "{to}");
        drop(server);
    }
}

#[tokio::test]
async fn another_server_is_told_neither_headers_nor_a_body() {
    let secret =
        || [("X-Api-Key".to_owned(), "hush".to_owned()), ("Accept".to_owned(), "a/b".to_owned())].into();
    let mut other = Server::answering([answer("200 OK", "other")]).await;
    let to = |status: &str| answer(&format!("{status}\r\nlocation: {}/there", other.url), "");
    let mut first = Server::answering([to("302 Found"), to("307 Temporary Redirect")]).await;
    let network = Network::public().allowing("127.0.0.0/8").unwrap();
    let get = Http {
        headers: secret(),
        query: [("q".to_owned(), "hush".to_owned())].into(),
        ..Http::new(&first.url)
    };
    assert_eq!(send(&network, get).await.unwrap(), json!("other"));
    assert!(first.received().await.head.contains("x-api-key: hush"));
    let told = other.received().await.head;
    assert!(told.starts_with("get /there http/1.1\r\n") && told.contains("accept: a/b"), "{told}");
    assert!(!told.contains("hush"), "{told}");
    let post = Http { method: Method::Post, body: Some("hush".to_owned()), ..Http::new(&first.url) };
    let error = send(&network, post).await.unwrap_err();
    assert!(
        error.message().starts_with("the body is not sent on from `127.0.0.1` to `127.0.0.1`"),
        "{error}"
    );
    assert!(!error.is_retryable());
}

#[tokio::test]
async fn the_same_server_is_told_all_of_it_again() {
    let mut server =
        Server::answering([answer("308 Permanent Redirect\r\nlocation: /there", ""), answer("200 OK", "ok")])
            .await;
    let http = Http {
        method: Method::Post,
        headers: [("X-Api-Key".to_owned(), "hush".to_owned())].into(),
        body: Some("whole".to_owned()),
        ..Http::new(&server.url)
    };
    let network = Network::public().allowing("127.0.0.1").unwrap();
    assert_eq!(send(&network, http).await.unwrap(), json!("ok"));
    server.received().await;
    let again = server.received().await;
    assert!(
        again.head.starts_with("post /there ") && again.head.contains("x-api-key: hush"),
        "{}",
        again.head
    );
    assert_eq!(again.body, "whole");
}

#[tokio::test]
async fn a_proxy_is_used_where_it_is_named_and_not_for_what_is_allowed() {
    let mut proxy = Server::answering([answer("200 OK", "by proxy")]).await;
    let direct = Server::answering([answer("200 OK", "direct")]).await;
    let network = Network::public().allowing("127.0.0.1").unwrap().with_proxy(&proxy.url).unwrap();
    assert_eq!(get(&network, direct.url.clone()).await.unwrap(), json!("direct"));
    assert_eq!(get(&network, "http://example.org/a".to_owned()).await.unwrap(), json!("by proxy"));
    assert!(proxy.received().await.head.starts_with("get http://example.org/a http/1.1"));
    for refused in ["http://10.0.0.1/", "http://metadata.google.internal/"] {
        assert!(
            get(&network, refused.to_owned()).await.unwrap_err().message().starts_with("no request is sent")
        );
    }
}
