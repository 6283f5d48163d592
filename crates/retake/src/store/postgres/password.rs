//! Passwords that are not in the URL: `PGPASSWORD`, and the password file of PostgreSQL's own programs.

use std::path::{Path, PathBuf};

/// What a password is for.
#[derive(Debug, Clone, Copy)]
pub(super) struct Login<'a> {
    pub(super) host: &'a str,
    pub(super) port: u16,
    pub(super) database: &'a str,
    pub(super) user: &'a str,
}

/// Returns the password that the surroundings have for a login.
pub(super) fn find(login: Login<'_>) -> Option<String> {
    if let Ok(password) = std::env::var("PGPASSWORD") {
        return Some(password);
    }
    let path = match std::env::var_os("PGPASSFILE") {
        Some(path) => PathBuf::from(path),
        None => std::env::home_dir()?.join(".pgpass"),
    };
    if !is_private(&path) {
        return None;
    }
    in_file(&std::fs::read_to_string(path).ok()?, login)
}

/// Returns the password of the first line that fits: `host:port:database:user:password`, where `*` fits everything.
fn in_file(text: &str, login: Login<'_>) -> Option<String> {
    let port = login.port.to_string();
    let wanted = [login.host, &port, login.database, login.user];
    text.lines().filter(|line| !line.starts_with('#')).find_map(|line| {
        let fields = fields(line);
        let (password, fields) = fields.split_last()?;
        let fits = |(field, wanted): (&String, &&str)| field == "*" || field == wanted;
        (fields.len() == wanted.len() && fields.iter().zip(&wanted).all(fits)).then(|| password.clone())
    })
}

/// Splits a line at the colons that have no backslash before them. What comes after the fourth is the password.
fn fields(line: &str) -> Vec<String> {
    const FIELDS: usize = 5;
    let mut fields = vec![String::new()];
    let mut characters = line.chars();
    while let Some(character) = characters.next() {
        if character == ':' && fields.len() < FIELDS {
            fields.push(String::new());
            continue;
        }
        let character = if character == '\\' { characters.next().unwrap_or('\\') } else { character };
        if let Some(field) = fields.last_mut() {
            field.push(character);
        }
    }
    fields
}

/// Tells whether nobody else may read a file; it is ignored otherwise, as PostgreSQL's own programs do.
#[cfg(unix)]
fn is_private(path: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt;

    const OTHERS: u32 = 0o077;
    std::fs::metadata(path).is_ok_and(|file| file.is_file() && file.permissions().mode() & OTHERS == 0)
}

#[cfg(not(unix))]
fn is_private(path: &Path) -> bool {
    path.is_file()
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOGIN: Login<'_> = Login { host: "db", port: 5432, database: "work", user: "ann" };

    #[test]
    fn the_first_line_that_fits_has_the_password() {
        let text = "# db:5432:work:ann:no\ndb:5433:work:ann:no\n*:*:work:ann:yes\n*:*:*:*:no\n";
        assert_eq!(in_file(text, LOGIN).as_deref(), Some("yes"));
        assert_eq!(in_file(text, Login { user: "bob", ..LOGIN }).as_deref(), Some("no"));
        assert_eq!(in_file("db:5432:work:ann", LOGIN), None);
    }

    #[test]
    fn colons_and_backslashes_of_a_field_have_a_backslash_before_them() {
        assert_eq!(in_file(r"db:5432:work:ann:a\:b\\c:d", LOGIN).as_deref(), Some(r"a:b\c:d"));
        let login = Login { host: "::1", ..LOGIN };
        assert_eq!(in_file(r"\:\:1:*:*:*:six", login).as_deref(), Some("six"));
    }
}
