//! "Did you mean": the known name nearest to a misspelt one.

/// Longer names are not typing mistakes, and the distance costs their length squared.
const NAME_CHARS_MAX: usize = 40;

/// Words of other programs for a key, and the key.
const OTHER_WORDS: [(&str, &str); 17] = [
    ("enabled", "admin"),
    ("enable", "admin"),
    ("disabled", "admin"),
    ("disable", "admin"),
    ("shutdown", "admin"),
    ("down", "admin"),
    ("up", "admin"),
    ("state", "admin"),
    ("bandwidth", "limit"),
    ("speed", "limit"),
    ("qos", "limit"),
    ("tag", "vlan"),
    ("pvid", "vlan"),
    ("device", "interface"),
    ("ifname", "interface"),
    ("nic", "interface"),
    ("path", "socket"),
];

/// The one of `names` that was meant, if one is near enough.
pub(super) fn nearest<'a>(mistyped: &str, names: &[&'a str]) -> Option<&'a str> {
    if mistyped.len() > NAME_CHARS_MAX {
        return None;
    }
    let mistyped = mistyped.to_ascii_lowercase();
    let other_word = OTHER_WORDS.iter().find(|(word, _)| *word == mistyped);
    let known = |wanted: &str| names.iter().copied().find(|name| *name == wanted);
    if let Some(name) = other_word.and_then(|(_, key)| known(key)) {
        return Some(name);
    }
    let is_one_mistake = |name: &&&str| distance(&mistyped, name) <= 1;
    if let Some(name) = names.iter().find(is_one_mistake) {
        return Some(name);
    }
    // A whole word says more than single characters: `watch` is the beginning of `watch_ports`, and not a misspelt `switch`.
    let begins = |name: &&&str| {
        let rest = name.strip_prefix(mistyped.as_str());
        rest.is_some_and(|rest| rest.starts_with('_'))
    };
    if let Some(name) = names.iter().filter(begins).min_by_key(|name| name.len()) {
        return Some(name);
    }
    by_characters(&mistyped, names).or_else(|| mistyped.split('_').rev().find_map(known))
}

/// The one of `names` that differs in the fewest characters, if these are few.
fn by_characters<'a>(mistyped: &str, names: &[&'a str]) -> Option<&'a str> {
    let near = |name: &&str| {
        // Two names of several words may differ in one that makes all the difference: rate_limit is not mac_limit.
        let (typed, name) = without_common_words(mistyped, name);
        distance(typed, name) <= name.len().max(typed.len()).div_ceil(3)
    };
    names
        .iter()
        .copied()
        .filter(near)
        .min_by_key(|name| distance(mistyped, name))
}

/// What is left of two names without the words that both begin or end with.
fn without_common_words<'a>(mut a: &'a str, mut b: &'a str) -> (&'a str, &'a str) {
    while let (Some((first, rest_a)), Some((other, rest_b))) =
        (a.split_once('_'), b.split_once('_'))
        && first == other
    {
        (a, b) = (rest_a, rest_b);
    }
    while let (Some((rest_a, last)), Some((rest_b, other))) =
        (a.rsplit_once('_'), b.rsplit_once('_'))
        && last == other
    {
        (a, b) = (rest_a, rest_b);
    }
    (a, b)
}

/// The number of insertions, deletions, substitutions and swaps of neighbours that turn `a` into `b`.
fn distance(a: &str, b: &str) -> usize {
    let (a, b): (Vec<char>, Vec<char>) = (a.chars().collect(), b.chars().collect());
    let mut rows = vec![vec![0; b.len() + 1]; a.len() + 1];
    for (i, row) in rows.iter_mut().enumerate() {
        row[0] = i;
    }
    rows[0] = (0..=b.len()).collect();
    for i in 1..=a.len() {
        for j in 1..=b.len() {
            let substitution = rows[i - 1][j - 1] + usize::from(a[i - 1] != b[j - 1]);
            let mut least = substitution.min(rows[i - 1][j] + 1).min(rows[i][j - 1] + 1);
            if i > 1 && j > 1 && a[i - 1] == b[j - 2] && a[i - 2] == b[j - 1] {
                least = least.min(rows[i - 2][j - 2] + 1);
            }
            rows[i][j] = least;
        }
    }
    rows[a.len()][b.len()]
}

/// `a`, `b`, `c`
pub(super) fn list(names: &[&str]) -> String {
    names
        .iter()
        .map(|name| format!("`{name}`"))
        .collect::<Vec<_>>()
        .join(", ")
}

/// "a", "b" or "c"
pub(super) fn alternatives(names: &[&str]) -> String {
    let quoted: Vec<String> = names.iter().map(|name| format!("{name:?}")).collect();
    match quoted.split_last() {
        Some((last, [])) => last.clone(),
        Some((last, others)) => format!("{} or {last}", others.join(", ")),
        None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_typing_mistake_finds_the_name_that_was_meant() {
        let names = ["name", "queue_pairs", "queues", "mode"];
        assert_eq!(nearest("queue-pairs", &names), Some("queue_pairs"));
        assert_eq!(nearest("queuepair", &names), Some("queue_pairs"));
        assert_eq!(nearest("QUEUES", &names), Some("queues"));
        assert_eq!(nearest("nmae", &names), Some("name"));
        assert_eq!(nearest("colour", &names), None);
        let limits = ["mac_limit", "fdb_capacity"];
        assert_eq!(nearest("rate_limit", &limits), None);
        assert_eq!(nearest("mac_limt", &limits), Some("mac_limit"));
        assert_eq!(nearest("mca_limit", &limits), Some("mac_limit"));
        assert_eq!(nearest("fdb_capcity", &limits), Some("fdb_capacity"));
        assert_eq!(nearest(&"q".repeat(1000), &names), None);
    }

    #[test]
    fn a_word_of_the_name_or_of_another_program_finds_the_name_that_was_meant() {
        let top = ["switch", "watch_ports", "ports_dir", "port"];
        assert_eq!(nearest("watch", &top), Some("watch_ports"));
        assert_eq!(nearest("swich", &top), Some("switch"));
        assert_eq!(nearest("ports", &top), Some("port"));
        let port = ["mac", "mac_limit", "limit", "vlan", "admin"];
        assert_eq!(nearest("rate_limit", &port), Some("limit"));
        assert_eq!(nearest("vlan_id", &port), Some("vlan"));
        for word in ["enabled", "disabled", "shutdown"] {
            assert_eq!(nearest(word, &port), Some("admin"));
            assert_eq!(nearest(word, &top), None);
        }
    }

    #[test]
    fn a_swap_of_neighbours_is_one_mistake() {
        assert_eq!(distance("nmae", "name"), 1);
        assert_eq!(distance("", "abc"), 3);
        assert_eq!(distance("vhost", "vhost"), 0);
    }
}
