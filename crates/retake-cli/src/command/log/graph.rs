//! Draws which item came from which, a lane for each line that is open. Pure: nothing here knows runs or prints.
//!
//! ```text
//! ●      an item of the first lane
//! │ ○    an item of another line, in a lane of its own
//! ├─╯    both came from the item below
//! ●
//! ~      what came before is not among the items
//! ```

use std::collections::HashSet;
use std::hash::Hash;

/// How many lines are drawn side by side. What opens one more is drawn beside them, and linked with nothing.
const LANES_MAX: usize = 12;

/// Something that came from something.
#[derive(Debug, Clone, Copy)]
pub(super) struct Item<K> {
    pub(super) key: K,
    /// What it came from, which comes later in the list, or is not in it.
    pub(super) parent: Option<K>,
    pub(super) mark: char,
}

/// A line of the drawing.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Row {
    pub(super) drawing: String,
    /// Which item stands on it; `None` where it only links others.
    pub(super) item: Option<usize>,
}

/// Draws items that are in the order from the newest to the oldest.
pub(super) fn draw<K: Copy + Eq + Hash>(items: &[Item<K>]) -> Vec<Row> {
    let listed: HashSet<K> = items.iter().map(|item| item.key).collect();
    let mut rows = Vec::new();
    // What each lane leads to.
    let mut lanes: Vec<Option<K>> = Vec::new();
    for (index, item) in items.iter().enumerate() {
        let leading: Vec<usize> = (0..lanes.len()).filter(|lane| lanes[*lane] == Some(item.key)).collect();
        if leading.len() > 1 {
            rows.push(Row { drawing: joint(&lanes, &leading), item: None });
        }
        leading.iter().skip(1).for_each(|lane| lanes[*lane] = None);
        let free = || lanes.iter().position(Option::is_none).unwrap_or(lanes.len());
        let lane = leading.first().copied().unwrap_or_else(free);
        rows.push(Row { drawing: beside(&lanes, lane, item.mark), item: Some(index) });
        if lane >= LANES_MAX {
            continue;
        }
        lanes.resize(lanes.len().max(lane + 1), None);
        lanes[lane] = item.parent.filter(|parent| listed.contains(parent));
        if item.parent.is_some() && lanes[lane].is_none() {
            rows.push(Row { drawing: beside(&lanes, lane, '~'), item: None });
        }
    }
    rows
}

/// Returns the open lanes, and a mark in one of them.
fn beside<K>(lanes: &[Option<K>], marked: usize, mark: char) -> String {
    let symbol = |lane: usize| match lanes.get(lane) {
        _ if lane == marked => mark,
        Some(Some(_)) => '│',
        Some(None) | None => ' ',
    };
    spaced((0..lanes.len().max(marked + 1)).map(|lane| (symbol(lane), ' ')))
}

/// Returns the open lanes, of which some join the leftmost of them.
fn joint<K>(lanes: &[Option<K>], joining: &[usize]) -> String {
    let (first, last) = (joining[0], joining[joining.len() - 1]);
    let symbol = |lane: usize| {
        let is_open = lanes[lane].is_some();
        if lane == first {
            ('├', '─')
        } else if lane == last {
            ('╯', ' ')
        } else if lane < first || lane > last {
            (if is_open { '│' } else { ' ' }, ' ')
        } else if joining.contains(&lane) {
            ('┴', '─')
        } else {
            (if is_open { '┼' } else { '─' }, '─')
        }
    };
    spaced((0..lanes.len()).map(symbol))
}

fn spaced(symbols: impl Iterator<Item = (char, char)>) -> String {
    let text: String = symbols.flat_map(|(symbol, after)| [symbol, after]).collect();
    text.trim_end().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(items: &[(u64, Option<u64>)]) -> Vec<String> {
        let items: Vec<Item<u64>> =
            items.iter().map(|(key, parent)| Item { key: *key, parent: *parent, mark: '*' }).collect();
        let text = |row: Row| match row.item {
            Some(index) => format!("{} {}", row.drawing, items[index].key),
            None => row.drawing,
        };
        draw(&items).into_iter().map(text).collect()
    }

    #[test]
    fn one_line_is_one_lane() {
        assert_eq!(drawn(&[(3, Some(2)), (2, Some(1)), (1, None)]), ["* 3", "* 2", "* 1"]);
        assert!(drawn(&[]).is_empty());
    }

    #[test]
    fn a_line_branches_off_where_it_began() {
        let items = [(6, Some(2)), (5, Some(4)), (4, Some(2)), (3, Some(2)), (2, Some(1)), (1, None)];
        assert_eq!(drawn(&items), ["* 6", "│ * 5", "│ * 4", "│ │ * 3", "├─┴─╯", "* 2", "* 1"]);
    }

    #[test]
    fn lines_cross_where_an_outer_one_joins_and_free_lanes_are_used_again() {
        let items =
            [(7, Some(3)), (6, Some(1)), (5, Some(3)), (4, Some(2)), (3, Some(2)), (2, Some(1)), (1, None)];
        assert_eq!(
            drawn(&items),
            [
                "* 7",
                "│ * 6",
                "│ │ * 5",
                "│ │ │ * 4",
                "├─┼─╯ │",
                "* │   │ 3",
                "├─┼───╯",
                "* │ 2",
                "├─╯",
                "* 1"
            ]
        );
    }

    #[test]
    fn what_is_not_listed_is_left_open() {
        assert_eq!(drawn(&[(9, Some(7)), (8, Some(4)), (3, Some(2))]), ["* 9", "~", "* 8", "~", "* 3", "~"]);
    }

    #[test]
    fn more_lines_than_there_are_lanes_are_drawn_beside_them() {
        let mut items: Vec<_> = (2..=60).rev().map(|key| (key, Some(1))).collect();
        items.push((1, None));
        let drawn = drawn(&items);
        assert_eq!(drawn.len(), 61);
        assert!(drawn.iter().all(|line| line.chars().count() <= LANES_MAX * 2 + 4), "{drawn:?}");
        assert_eq!(drawn[59], format!("├─{}╯", "┴─".repeat(LANES_MAX - 2)));
        assert_eq!(drawn[60], "* 1");
    }
}
