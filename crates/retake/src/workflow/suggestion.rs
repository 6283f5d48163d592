//! What somebody may have meant by a word that does not exist.

/// How many words are listed where none is near.
const LISTED_MAX: usize = 10;

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

fn nearest<'w>(word: &str, words: &[&'w str]) -> Option<&'w str> {
    words
        .iter()
        .map(|known| (strsim::damerau_levenshtein(word, known), *known))
        .filter(|(distance, known)| *distance <= known.chars().count().max(3) / 3)
        .min()
        .map(|(_, known)| known)
}

/// Returns the words in backquotes, with commas between.
pub(super) fn list(words: &[&str]) -> String {
    words.iter().map(|word| format!("`{word}`")).collect::<Vec<_>>().join(", ")
}
