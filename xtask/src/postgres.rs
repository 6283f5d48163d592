//! A private PostgreSQL for whoever needs one: a cluster in a directory of its own, which is gone when they are done, also
//! where they are interrupted or killed.

use std::io::Error;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use xshell::{Shell, cmd};

/// The oldest version that will do.
const VERSION_MIN: u32 = 15;

/// Where Debian keeps the programs of each version.
const VERSIONS: &str = "/usr/lib/postgresql";

/// Where the package looks before it makes and starts a cluster for the whole machine, which nobody asked for.
const NO_MAIN_CLUSTER: &str = "/etc/postgresql-common/createcluster.d/retake.conf";

/// How often a port is chosen: somebody else may take it before the server does.
const PORTS_MAX: u32 = 5;

/// How many connections there may be: the tests of a crate run side by side.
const CONNECTIONS_MAX: u32 = 300;

/// Tells the tests where the server is, as a superuser may connect.
const URL: &str = "RETAKE_TEST_POSTGRES";

/// Tells them the certificate of the authority that signed the server's.
const AUTHORITY: &str = "RETAKE_TEST_POSTGRES_CA";

/// Says what is missing, or what went wrong.
type Failure = Box<dyn std::error::Error>;

/// A server that runs until this is dropped.
#[derive(Debug)]
pub(crate) struct Cluster {
    url: String,
    authority: PathBuf,
    /// Ends the server and removes its directory when its input ends, which it does however this process ends.
    keeper: Child,
}

impl Cluster {
    /// Starts a server, which is installed where that is needed and possible.
    pub(crate) fn start(shell: &Shell) -> Result<Self, Failure> {
        let programs = match programs() {
            Some(programs) => programs,
            None => install(shell)?,
        };
        let account = Account::of_this_process(shell)?;
        let directory = cmd!(shell, "mktemp --directory --tmpdir retake-postgres-XXXXXX").quiet().read()?;
        let directory = PathBuf::from(directory);
        let keeper = keeper(&account, &programs, &directory)?;
        // From here on, the keeper cleans up.
        let mut cluster = Self { url: String::new(), authority: directory.join("ca.pem"), keeper };
        let password = cmd!(shell, "openssl rand -hex 16").quiet().read()?;
        initialize(shell, &account, &programs, &directory, &password)?;
        let port = launch(shell, &account, &programs, &directory)?;
        // Tests of encrypted connections ask for them.
        cluster.url = format!("postgres://postgres:{password}@127.0.0.1:{port}/postgres?sslmode=disable");
        Ok(cluster)
    }

    /// Returns the variables that tell tests of the server.
    pub(crate) fn variables(&self) -> [(&'static str, String); 2] {
        [(URL, self.url.clone()), (AUTHORITY, self.authority.display().to_string())]
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        drop(self.keeper.stdin.take());
        drop(self.keeper.wait());
    }
}

/// Who the server runs as: it refuses to run as root.
struct Account {
    /// What is put in front of its commands.
    prefix: Vec<String>,
}

impl Account {
    fn of_this_process(shell: &Shell) -> Result<Self, Failure> {
        let prefix = match cmd!(shell, "id -u").quiet().read()?.as_str() {
            "0" => ["runuser", "-u", "postgres", "--"].map(str::to_owned).to_vec(),
            _ => Vec::new(),
        };
        Ok(Self { prefix })
    }

    fn command(&self, program: &Path) -> Command {
        let mut words = self.prefix.iter().map(String::as_str).chain(program.to_str());
        let mut command = Command::new(words.next().unwrap_or_default());
        command.args(words);
        command
    }
}

/// Returns the directory of the newest version's programs.
fn programs() -> Option<PathBuf> {
    let versions = std::fs::read_dir(VERSIONS).into_iter().flatten().flatten();
    let version = |entry: std::fs::DirEntry| entry.file_name().to_str()?.parse::<u32>().ok();
    let usable = |version: &u32| Path::new(VERSIONS).join(format!("{version}/bin/initdb")).exists();
    let newest =
        versions.filter_map(version).filter(|version| *version >= VERSION_MIN).filter(usable).max()?;
    Some(Path::new(VERSIONS).join(format!("{newest}/bin")))
}

/// Installs the package, without the cluster that it makes.
fn install(shell: &Shell) -> Result<PathBuf, Failure> {
    let needed =
        format!("PostgreSQL {VERSION_MIN} or later is needed: install Debian's package `postgresql`");
    let may = cmd!(shell, "id -u").quiet().read()? == "0" && Path::new("/usr/bin/apt-get").exists();
    if !may {
        return Err(needed.into());
    }
    shell.write_file(NO_MAIN_CLUSTER, "create_main_cluster = false\n")?;
    let installed = cmd!(shell, "apt-get update -q").run().and_then(|()| {
        let _asks_nobody = shell.push_env("DEBIAN_FRONTEND", "noninteractive");
        cmd!(shell, "apt-get install -y -q --no-install-recommends postgresql").run()
    });
    shell.remove_path(NO_MAIN_CLUSTER)?;
    installed?;
    programs().ok_or_else(|| needed.into())
}

/// Starts the process that stays behind to clean up, in a group of its own, so that an interrupt does not reach it.
fn keeper(account: &Account, programs: &Path, directory: &Path) -> Result<Child, Failure> {
    use std::os::unix::process::CommandExt;

    let script = "read -r _; cd /; stop=$1; directory=$2; shift 2; \
                  \"$@\" \"$stop\" --pgdata \"$directory/data\" --mode immediate --silent stop >\"$directory/stop\" 2>&1; \
                  rm -rf \"$directory\"";
    // `env` stands for no prefix.
    let prefix = if account.prefix.is_empty() { vec!["env".to_owned()] } else { account.prefix.clone() };
    let mut command = Command::new("sh");
    command.args(["-c", script, "keeper"]).arg(programs.join("pg_ctl")).arg(directory).args(prefix);
    Ok(command.stdin(Stdio::piped()).process_group(0).spawn()?)
}

/// Makes the cluster, and certificates for `localhost` signed by an authority of its own.
fn initialize(
    shell: &Shell,
    account: &Account,
    programs: &Path,
    directory: &Path,
    password: &str,
) -> Result<(), Failure> {
    let data = directory.join("data");
    shell.write_file(directory.join("password"), password)?;
    let key = directory.join("server.key");
    let (authority, authority_key) = (directory.join("ca.pem"), directory.join("ca.key"));
    let (request, certificate) = (directory.join("server.csr"), directory.join("server.pem"));
    let names = directory.join("names");
    shell.write_file(&names, "subjectAltName = DNS:localhost\n")?;
    let algorithm = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"];
    cmd!(
        shell,
        "openssl req -x509 {algorithm...} -days 30 -subj /CN=tests -keyout {authority_key} -out {authority}"
    )
    .quiet()
    .ignore_stderr()
    .run()?;
    cmd!(shell, "openssl req {algorithm...} -subj /CN=localhost -keyout {key} -out {request}")
        .quiet()
        .ignore_stderr()
        .run()?;
    cmd!(
        shell,
        "openssl x509 -req -days 30 -in {request} -CA {authority} -CAkey {authority_key} -CAcreateserial -extfile {names} -out {certificate}"
    )
    .quiet()
    .ignore_stderr()
    .run()?;
    cmd!(shell, "chmod 600 {key} {authority_key}").quiet().run()?;
    if !account.prefix.is_empty() {
        cmd!(shell, "chown -R postgres:postgres {directory}").quiet().run()?;
    }
    let mut initdb = account.command(&programs.join("initdb"));
    initdb.args([
        "--auth=scram-sha-256",
        "--username=postgres",
        "--encoding=UTF8",
        "--locale=C",
        "--no-sync",
    ]);
    initdb.arg("--pwfile").arg(directory.join("password")).arg("--pgdata").arg(&data);
    quietly(initdb.current_dir("/"))
}

/// Starts the server on a port that is free, and returns the port.
fn launch(shell: &Shell, account: &Account, programs: &Path, directory: &Path) -> Result<u16, Failure> {
    let log = directory.join("log");
    let mut failure = None;
    for _ in 0..PORTS_MAX {
        let port = TcpListener::bind("127.0.0.1:0")?.local_addr()?.port();
        let at = directory.display();
        let options = format!(
            "-c listen_addresses=127.0.0.1 -c port={port} -c unix_socket_directories={at} -c max_connections={CONNECTIONS_MAX} \
             -c ssl=on -c ssl_cert_file={at}/server.pem -c ssl_key_file={at}/server.key"
        );
        let mut start = account.command(&programs.join("pg_ctl"));
        start.arg("--pgdata").arg(directory.join("data")).arg("--log").arg(&log);
        start.args(["--wait", "--silent", "--options", &options, "start"]);
        match quietly(start.current_dir("/")) {
            Ok(()) => return Ok(port),
            Err(error) => failure = Some(error),
        }
    }
    let said = shell.read_file(&log).unwrap_or_default();
    Err(format!("{}\n{said}", failure.map_or_else(String::new, |failure| failure.to_string())).into())
}

/// Runs a command; what it says is shown only where it fails.
fn quietly(command: &mut Command) -> Result<(), Failure> {
    // A server that stays behind would keep a pipe open.
    let output = command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status()?;
    match output.success() {
        true => Ok(()),
        false => Err(Error::other(format!("{command:?} failed: {output}")).into()),
    }
}
