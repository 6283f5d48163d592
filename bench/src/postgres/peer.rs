//! The peer: `pgbench`, which comes with the server, inserting the same number of bytes in a transaction each.

use std::ffi::OsStr;
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::time::Duration;

use tempfile::TempDir;

use super::server::{Schema, Server};
use crate::Outcome;
use crate::sample::{Draw, prose};

/// Where Debian keeps the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// What `pgbench` writes before its rate.
const RATE: &str = "tps = ";

/// A table, and a program that fills it.
#[derive(Debug)]
pub(crate) struct Peer<'a> {
    /// Where the table is.
    _schema: Schema<'a>,
    program: PathBuf,
    directory: TempDir,
    database: String,
    body: String,
}

impl<'a> Peer<'a> {
    /// Makes the table, into which every transaction is to insert so many bytes.
    pub(crate) fn new(server: &'a Server, bytes: usize) -> Outcome<Self> {
        let schema = server.schema("peer");
        let table = format!("{}.peer", schema.name);
        server.run(&format!("CREATE SCHEMA {}", schema.name))?;
        server.run(&format!(
            "CREATE TABLE {table} (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, body bytea NOT NULL)"
        ))?;
        let directory = tempfile::tempdir()?;
        let mut script = std::fs::File::create(directory.path().join("insert.sql"))?;
        writeln!(script, "INSERT INTO {table} (body) VALUES (:body);")?;
        let mut draw = Draw::new(6);
        let mut body = String::new();
        while body.len() < bytes {
            body.push_str(&prose(&mut draw));
        }
        body.truncate(bytes);
        Ok(Self {
            _schema: schema,
            program: program()?,
            directory,
            database: server.database().to_owned(),
            body,
        })
    }

    /// Returns how many transactions so many clients make in a second.
    pub(crate) fn rate(&self, clients: usize, seconds: usize) -> Outcome<f64> {
        let said = self.run(clients, seconds, &[])?;
        let rate = said.lines().find_map(|line| line.strip_prefix(RATE)?.split(' ').next());
        Ok(rate.ok_or_else(|| format!("no rate in what pgbench says: {said}"))?.parse()?)
    }

    /// Returns how long each transaction of one client took.
    pub(crate) fn latencies(&self, seconds: usize) -> Outcome<Vec<Duration>> {
        let prefix = format!("--log-prefix={}", self.directory.path().join("log").display());
        self.run(1, seconds, &[OsStr::new("--log"), OsStr::new(&prefix)])?;
        let mut latencies = Vec::new();
        for entry in std::fs::read_dir(self.directory.path())? {
            let path = entry?.path();
            if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("log.")) {
                for line in std::fs::read_to_string(&path)?.lines() {
                    let micros = line.split(' ').nth(2).ok_or("a line without a time")?;
                    latencies.push(Duration::from_micros(micros.parse()?));
                }
                std::fs::remove_file(path)?;
            }
        }
        Ok(latencies)
    }

    fn run(&self, clients: usize, seconds: usize, more: &[&OsStr]) -> Outcome<String> {
        let mut command = Command::new(&self.program);
        // In the directory of the script: what it logs is written where it runs.
        command.current_dir(self.directory.path()).args([
            "--no-vacuum",
            "--protocol=prepared",
            "--file=insert.sql",
        ]);
        command.arg(format!("--client={clients}")).arg(format!("--jobs={}", clients.min(2)));
        command.arg(format!("--time={seconds}")).arg("--define").arg(format!("body={}", self.body));
        let output = command.args(more).arg(&self.database).output()?;
        if output.status.success() {
            Ok(String::from_utf8(output.stdout)?)
        } else {
            Err(format!("pgbench: {}", String::from_utf8_lossy(&output.stderr)).into())
        }
    }
}

/// Finds `pgbench`: the newest of Debian's, or the one in the path.
fn program() -> Outcome<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = std::fs::read_dir(VERSIONS)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let program = entry.path().join("bin/pgbench");
            Some((entry.file_name().to_str()?.parse().ok()?, program)).filter(|(_, program)| program.exists())
        })
        .collect();
    found.sort();
    Ok(found.pop().map_or_else(|| PathBuf::from("pgbench"), |(_, program)| program))
}
