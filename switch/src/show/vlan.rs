//! A port's VLANs in few characters.

/// The longest list of VLANs in a table's column.
const LIST_MAX: usize = 24;

/// The text with runs of VLANs as ranges: `trunk 1,2,3,7` is `trunk 1-3,7`.
pub(super) fn ranges(text: &str) -> String {
    let words = text.split(' ').map(list);
    words.collect::<Vec<_>>().join(" ")
}

/// Like [`ranges`], for a narrow column. A trunk is its list, which is cut if it is long, with the number of all; then, after a
/// slash, its native VLAN.
pub(super) fn short(text: &str) -> String {
    let Some(trunk) = text.strip_prefix("trunk ") else {
        return text.to_owned();
    };
    let (ids, native) = match trunk.split_once(" native ") {
        Some((ids, native)) => (ids, format!("/{native}")),
        None => (trunk, String::new()),
    };
    cut(&list(ids), ids) + &native
}

/// A list with runs as ranges. Other words are left as they are.
fn list(word: &str) -> String {
    let ids: Option<Vec<u32>> = word.split(',').map(|id| id.parse().ok()).collect();
    let Some(ids) = ids.filter(|ids| ids.len() > 1) else {
        return word.to_owned();
    };
    let mut runs: Vec<(u32, u32)> = Vec::new();
    for id in ids {
        match runs.last_mut() {
            Some((_, last)) if *last + 1 == id => *last = id,
            _ => runs.push((id, id)),
        }
    }
    let text = |(first, last): (u32, u32)| match last - first {
        0 => first.to_string(),
        1 => format!("{first},{last}"),
        _ => format!("{first}-{last}"),
    };
    runs.into_iter().map(text).collect::<Vec<_>>().join(",")
}

fn cut(ranges: &str, word: &str) -> String {
    if ranges.len() <= LIST_MAX {
        return ranges.to_owned();
    }
    let Some((shown, _)) = ranges
        .get(..LIST_MAX)
        .and_then(|begin| begin.rsplit_once(','))
    else {
        return ranges.to_owned();
    };
    let of_part = |part: &str| match part.split_once('-') {
        Some((first, last)) => {
            let ends = (first.parse::<u32>(), last.parse::<u32>());
            ends.0
                .ok()
                .zip(ends.1.ok())
                .map_or(1, |(a, b)| b.saturating_sub(a) as usize + 1)
        }
        None => 1,
    };
    let all: usize = word.split(',').map(of_part).sum();
    format!("{shown},... ({all})")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_are_ranges_and_other_words_stay() {
        assert_eq!(ranges("trunk 1,2,3,7 native 5"), "trunk 1-3,7 native 5");
        assert_eq!(ranges("trunk 1,2,4"), "trunk 1,2,4");
        assert_eq!(ranges("access 100"), "access 100");
        assert_eq!(ranges("unaware"), "unaware");
        assert_eq!(ranges("trunk 1-3,7"), "trunk 1-3,7");
    }

    #[test]
    fn any_list_is_short_in_a_column() {
        let list = |ids: &mut dyn Iterator<Item = u32>| -> String {
            ids.map(|id| id.to_string()).collect::<Vec<_>>().join(",")
        };
        let run = format!("trunk {}", list(&mut (2..401)));
        assert_eq!(short(&run), "2-400");
        let even = short(&format!(
            "trunk {} native 1",
            list(&mut (100..900).step_by(2))
        ));
        assert_eq!(even, "100,102,104,106,108,110,... (400)/1");
        assert!(short("trunk 1-10,20-30,40-50,60-70,80-90,100-110").ends_with("(65)"));
    }
}
