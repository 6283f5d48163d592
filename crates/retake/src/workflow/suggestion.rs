//! What somebody may have meant by a word that does not exist.

/// How many words are listed where none is near.
const LISTED_MAX: usize = 10;

/// How long a word may be, in bytes, to be compared with others.
const LENGTH_MAX: usize = 100;

/// How much of a word is shown.
const SHOWN_CHARS_MAX: usize = 40;

/// Returns `did you mean …` if a word is near, else a list of the words there are.
pub(super) fn among<'w>(word: &str, words: impl IntoIterator<Item = &'w str>) -> String {
    let words: Vec<&str> = words.into_iter().collect();
    if let Some(near) = nearest(word, &words) {
        return format!("did you mean `{near}`?");
    }
    match words.len() {
        0 => "there is none".to_owned(),
        1..=LISTED_MAX => format!("there is {}", list(&words)),
        more => format!("there is {}, and {} more", list(&words[..LISTED_MAX]), more - LISTED_MAX),
    }
}

/// Returns the word that is most like another, if one is much like it.
pub(crate) fn nearest<'w>(word: &str, words: &[&'w str]) -> Option<&'w str> {
    words
        .iter()
        .filter_map(|known| {
            let allowed = known.len().max(3) / 3;
            // Also bounds the cost: comparing takes the product of the lengths.
            if word.len().abs_diff(known.len()) > allowed * 4 || word.len() > LENGTH_MAX {
                return None;
            }
            let distance = strsim::damerau_levenshtein(word, known);
            (distance <= allowed).then_some((distance, *known))
        })
        .min()
        .map(|(_, known)| known)
}

/// Returns the words in backquotes, with commas between.
pub(super) fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{}`", shortened(word))).collect::<Vec<_>>().join(", ")
}

/// Returns the start of a word that may be a whole file.
pub(super) fn shortened(word: &str) -> String {
    match word.char_indices().nth(SHOWN_CHARS_MAX) {
        Some((end, _)) => format!("{}…", &word[..end]),
        None => word.to_owned(),
    }
}
