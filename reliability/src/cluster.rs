//! A PostgreSQL server of its own for a trial, which may kill it: `cargo xtask` keeps one for the tests, which nobody may.

use std::net::TcpListener;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal};
use tokio_postgres::{Client, NoTls, SimpleQueryMessage};

use crate::Outcome;
use crate::disk::{MEMORY, require_root, succeed};

/// Where Debian keeps the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// Who the server runs as, since it refuses to run as root.
const ACCOUNT: &str = "postgres";

/// How often to look whether the server takes connections, and how long to wait between two looks.
const LOOKS_MAX: u32 = 1_500;
const LOOK_PAUSE: Duration = Duration::from_millis(20);

/// How long one such look takes at most.
const LOOK_MAX: Duration = Duration::from_secs(2);

/// What a kill befalls.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Victim {
    /// The first process alone: those that serve connections notice it, some only after they have committed.
    Postmaster,
    /// All processes at once.
    Everything,
}

/// Where the server is.
#[derive(Debug, Clone)]
pub(crate) struct Site {
    /// What its commands begin with, where it lives in a network of its own.
    pub(crate) prefix: Vec<String>,
    pub(crate) host: String,
}

impl Site {
    /// This machine, and nobody else's.
    pub(crate) fn here() -> Self {
        Self { prefix: Vec::new(), host: "127.0.0.1".to_owned() }
    }
}

/// A server in a directory of its own. It ends with the thread that started it.
#[derive(Debug)]
pub(crate) struct Cluster {
    directory: tempfile::TempDir,
    programs: PathBuf,
    site: Site,
    port: u16,
    server: Option<Child>,
}

impl Cluster {
    /// Makes a server, and starts it.
    pub(crate) fn new(site: Site) -> Outcome<Self> {
        require_root()?;
        // In memory where that is possible: no trial cuts the power of a server.
        let directory = tempfile::Builder::new()
            .prefix("retake-postgres-")
            .tempdir_in(MEMORY)
            .or_else(|_| tempfile::tempdir())?;
        succeed(Command::new("chown").arg(ACCOUNT).arg(directory.path()))?;
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let mut cluster = Self { directory, programs: programs()?, site, port, server: None };
        let data = cluster.data();
        let initdb = ["--auth=trust", "--username=postgres", "--encoding=UTF8", "--locale=C", "--no-sync"];
        succeed(cluster.command("initdb", &[]).args(initdb).arg("--pgdata").arg(&data))?;
        if !cluster.site.prefix.is_empty() {
            // Nobody else can reach it there.
            std::fs::write(data.join("pg_hba.conf"), "local all all trust\nhost all all all trust\n")?;
        }
        cluster.start()?;
        Ok(cluster)
    }

    /// Starts it, and returns when it takes connections: what was acknowledged is there then.
    pub(crate) fn start(&mut self) -> Outcome<()> {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.directory.path().join("log"))?;
        for _ in 0..LOOKS_MAX {
            if self.server.is_none() {
                let mut command = self.command("postgres", &self.site.prefix);
                command
                    .arg("-D")
                    .arg(self.data())
                    .args(["-p", &self.port.to_string()])
                    .args(["-c", &format!("listen_addresses={}", self.site.host)])
                    .args(["-c", &format!("unix_socket_directories={}", self.directory.path().display())])
                    .args(["-c", "max_connections=100"])
                    .stdin(Stdio::null())
                    .stdout(log.try_clone()?)
                    .stderr(log.try_clone()?)
                    .process_group(0);
                self.server = Some(command.spawn()?);
            }
            if self.answers() {
                return Ok(());
            }
            // Processes of the one before may still be there, and then it refuses to start.
            if let Some(server) = &mut self.server
                && server.try_wait()?.is_some()
            {
                self.server = None;
            }
            std::thread::sleep(LOOK_PAUSE);
        }
        let said = std::fs::read_to_string(self.directory.path().join("log")).unwrap_or_default();
        let last: Vec<&str> = said.lines().rev().take(5).collect();
        Err(format!("the server does not start: {}", last.join("; ")).into())
    }

    /// Kills it with SIGKILL.
    pub(crate) fn kill(&mut self, victim: Victim) -> Outcome<()> {
        let Some(mut server) = self.server.take() else { return Err("there is no server to kill".into()) };
        let first = Pid::from_child(&server);
        let others = match victim {
            Victim::Postmaster => Vec::new(),
            Victim::Everything => children(first),
        };
        rustix::process::kill_process(first, Signal::KILL)?;
        for other in others {
            // It may have ended.
            let _ = rustix::process::kill_process(other, Signal::KILL);
        }
        server.wait()?;
        Ok(())
    }

    /// Returns the URL of a store in a schema.
    pub(crate) fn url(&self, schema: &str) -> String {
        format!(
            "postgres://postgres@{}:{}/postgres?sslmode=disable&schema={schema}",
            self.site.host, self.port
        )
    }

    /// Returns the URL of a store in a schema, past any network.
    pub(crate) fn url_beside(&self, schema: &str) -> String {
        let directory = self.directory.path().display().to_string().replace('/', "%2F");
        format!("postgres://postgres@{directory}:{}/postgres?sslmode=disable&schema={schema}", self.port)
    }

    /// Returns the first columns of what statements give, whatever becomes of the network.
    pub(crate) fn query(&self, sql: &str) -> Outcome<Vec<String>> {
        runtime()?.block_on(async { rows(&connect(&self.beside()).await?, sql).await })
    }

    /// Returns how to connect past any network.
    fn beside(&self) -> String {
        let (directory, port) = (self.directory.path().display(), self.port);
        format!("host={directory} port={port} user=postgres dbname=postgres")
    }

    fn answers(&self) -> bool {
        let Ok(runtime) = runtime() else { return false };
        let look = runtime.block_on(async { tokio::time::timeout(LOOK_MAX, connect(&self.beside())).await });
        look.is_ok_and(|connected| connected.is_ok())
    }

    fn data(&self) -> PathBuf {
        self.directory.path().join("data")
    }

    /// Returns a command that runs as the server's account, and ends with this thread.
    fn command(&self, program: &str, prefix: &[String]) -> Command {
        let mut words = prefix.iter().map(String::as_str).chain(["setpriv"]);
        let mut command = Command::new(words.next().unwrap_or_default());
        command
            .args(words)
            .args([&format!("--reuid={ACCOUNT}"), &format!("--regid={ACCOUNT}"), "--init-groups"])
            .arg("--pdeathsig=KILL")
            .arg(self.programs.join(program))
            .current_dir(self.directory.path());
        command
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        // It may have been killed.
        drop(self.kill(Victim::Everything));
    }
}

/// Connects as any client does, without a bound on anything.
pub(crate) async fn connect(url: &str) -> Outcome<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls).await?;
    tokio::spawn(async move {
        // Whoever waits for an answer is told.
        drop(connection.await);
    });
    Ok(client)
}

/// Returns the first columns of what statements give.
pub(crate) async fn rows(client: &Client, sql: &str) -> Outcome<Vec<String>> {
    let messages = client.simple_query(sql).await?;
    let rows = messages.iter().filter_map(|message| match message {
        SimpleQueryMessage::Row(row) => Some(row),
        SimpleQueryMessage::CommandComplete(_) | SimpleQueryMessage::RowDescription(_) | _ => None,
    });
    Ok(rows.map(|row| row.get(0).unwrap_or_default().to_owned()).collect())
}

pub(crate) fn runtime() -> Outcome<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_current_thread().enable_all().build()?)
}

/// Returns the directory of the newest version's programs.
fn programs() -> Outcome<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let version = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let programs = |version: u32| Path::new(VERSIONS).join(version.to_string()).join("bin");
    let usable = versions.filter_map(version).filter(|version| programs(*version).join("initdb").exists());
    let newest = usable.max().ok_or("this trial needs Debian's package `postgresql`")?;
    Ok(programs(newest))
}

/// Returns the processes that a process has started.
fn children(parent: Pid) -> Vec<Pid> {
    let id = parent.as_raw_nonzero();
    let text = std::fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap_or_default();
    text.split_whitespace().filter_map(|child| Pid::from_raw(child.parse().ok()?)).collect()
}
