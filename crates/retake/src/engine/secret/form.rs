//! The forms in which a secret turns up again: as it is, and as programs write it into JSON, addresses and headers. Pure.

use std::collections::BTreeSet;
use std::fmt::Write;

/// Of a longer secret only the text itself and its lines are looked for: everything else would take too much room.
const FORMED_BYTES_MAX: usize = 64 * 1024;

/// A piece of an encoded secret that is shorter than this could be a piece of anything.
const PIECE_BYTES_MIN: usize = 8;

/// After how many letters programs break lines of base64.
const BASE64_LINES: [usize; 2] = [64, 76];

const BASE64: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

/// The signs that stay as they are, beside letters and digits, in the ways to write text into an address that are in use:
/// strictly, in forms, in JavaScript twice, and in the path and the query of a URL.
const KEPT: [&str; 6] = [
    "-._~",
    "*-._",
    "-_.!~*'()",
    "-_.!~*'();/?:@&=+$,#",
    "-_.!~*'();/:@&=+$,|[]\\%",
    "-_.!~*();/?:@&=+$,|[]\\%^`{}",
];

/// Returns every form of a secret that is looked for.
pub(super) fn forms(secret: &str) -> BTreeSet<String> {
    let mut forms: BTreeSet<String> = secret.lines().map(str::to_owned).collect();
    forms.insert(secret.to_owned());
    forms.insert(secret.trim().to_owned());
    if secret.is_empty() || secret.len() > FORMED_BYTES_MAX {
        return forms;
    }
    for text in [secret, secret.trim()] {
        let once = in_json(text);
        forms.insert(in_json(&once));
        forms.insert(once);
        for kept in KEPT {
            for (space, is_upper) in [("%20", true), ("%20", false), ("+", true), ("+", false)] {
                forms.insert(percent(text, kept, space, is_upper));
            }
        }
        for digits in [|byte: u8| format!("{byte:02x}"), |byte: u8| format!("{byte:02X}")] {
            forms.insert(text.bytes().map(digits).collect());
        }
        for before in 0..3 {
            base64(text.as_bytes(), before, &mut forms);
        }
    }
    forms
}

fn in_json(text: &str) -> String {
    let quoted = serde_json::Value::from(text).to_string();
    quoted[1..quoted.len() - 1].to_owned()
}

fn percent(text: &str, kept: &str, space: &str, is_upper: bool) -> String {
    let mut written = String::with_capacity(text.len() * 2);
    for byte in text.bytes() {
        match byte {
            b' ' => written.push_str(space),
            byte if byte.is_ascii_alphanumeric() || kept.as_bytes().contains(&byte) => {
                written.push(char::from(byte));
            }
            byte if is_upper => write!(written, "%{byte:02X}").expect("a text takes every write"),
            byte => write!(written, "%{byte:02x}").expect("a text takes every write"),
        }
    }
    written
}

/// Adds what base64 makes of the secret where so many bytes stand before it, in a group of three: those letters that are
/// the same whatever stands around it, and one more for where nothing follows. In both alphabets, whole and in lines.
fn base64(secret: &[u8], before: usize, forms: &mut BTreeSet<String>) {
    let bytes = std::iter::repeat_n(0, before).chain(secret.iter().copied()).collect::<Vec<u8>>();
    let sextets = (bytes.len() * 8).div_ceil(6);
    let sextet = |index: usize| {
        let bit = |at: usize| bytes.get(at / 8).map_or(0, |byte| usize::from(byte >> (7 - at % 8) & 1));
        (0..6).fold(0, |sextet, offset| sextet << 1 | bit(index * 6 + offset))
    };
    let letters: String =
        ((before * 8).div_ceil(6)..sextets).map(|index| char::from(BASE64[sextet(index)])).collect();
    let is_last_open = bytes.len() * 8 % 6 != 0;
    let mut pieces = vec![letters.as_str(), &letters[..letters.len() - usize::from(is_last_open)]];
    if before == 0 {
        for line in BASE64_LINES {
            let whole = (0..letters.len()).step_by(line).map(|at| &letters[at..letters.len().min(at + line)]);
            pieces.extend(whole);
        }
    }
    for piece in pieces.into_iter().filter(|piece| piece.len() >= PIECE_BYTES_MIN) {
        forms.insert(piece.replace('+', "-").replace('/', "_"));
        forms.insert(piece.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_is_known_as_programs_write_it() {
        let forms = forms("pä\"ss w/r+d");
        for form in [
            "pä\"ss w/r+d",
            "pä\\\"ss w/r+d",
            "pä\\\\\\\"ss w/r+d",
            "p%C3%A4%22ss%20w%2Fr%2Bd",
            "p%c3%a4%22ss%20w%2fr%2bd",
            "p%C3%A4%22ss+w%2Fr%2Bd",
            "p%C3%A4%22ss%20w/r+d",
            "70c3a42273732077",
            "cMOkInNzIHcvcitk",
        ] {
            assert!(forms.iter().any(|known| known.starts_with(form)), "{form} in {forms:?}");
        }
    }

    #[test]
    fn base64_is_known_wherever_the_secret_stands_in_what_was_encoded() {
        // Of `user:`, `a:` and `ab:` before the secret, and of something after it.
        for encoded in
            ["dXNlcjpoMXNoLWgxc2gtaDFzaCE=", "YTpoMXNoLWgxc2gtaDFzaCE=", "YWI6aDFzaC1oMXNoLWgxc2gh"]
        {
            let forms = forms("h1sh-h1sh-h1sh");
            assert!(forms.iter().any(|form| encoded.contains(form.as_str())), "{encoded} in {forms:?}");
        }
        let url_safe = forms("\u{fb}\u{ff}\u{ff}\u{fe}??>>??");
        assert!(
            url_safe.iter().any(|form| form.contains('_')) && url_safe.iter().any(|form| form.contains('/'))
        );
    }
}
