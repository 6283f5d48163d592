//! Tables for a person: aligned columns, coloured where the terminal wants it.

use owo_colors::{OwoColorize, Style};
use unicode_width::UnicodeWidthStr;

use crate::output::Output;
use crate::wording;

/// Columns under their headings.
#[derive(Debug)]
pub(crate) struct Table {
    headings: Vec<Cell>,
    rows: Vec<Row>,
}

#[derive(Debug)]
enum Row {
    /// Under the headings.
    Aligned(Vec<Cell>),
    /// Across the columns.
    Aside(Vec<Cell>),
}

/// One text of a table.
#[derive(Debug)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// Returns a cell with a colour.
    pub(crate) fn styled(text: impl AsRef<str>, style: Style) -> Self {
        Self { text: wording::plain(text.as_ref()), style }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::styled(text, Style::new())
    }
}

impl Table {
    pub(crate) fn new<const N: usize>(headings: [&str; N]) -> Self {
        let headings = headings.into_iter().map(|heading| Cell::styled(heading, Style::new().dimmed()));
        Self { headings: headings.collect(), rows: Vec::new() }
    }

    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(Row::Aligned(cells.into()));
    }

    /// Adds texts that stand one after the other, whatever the columns are.
    pub(crate) fn aside<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(Row::Aside(cells.into()));
    }

    /// Prints the table, unless it has only headings. Columns without a text are left out.
    pub(crate) fn print(&self, output: &Output) {
        if !self.rows.is_empty() {
            self.lines().into_iter().for_each(|line| output.line(line));
        }
    }

    fn lines(&self) -> Vec<String> {
        let aligned = || self.rows.iter().filter_map(Row::aligned);
        let width = |(column, heading): (usize, &Cell)| {
            let texts = aligned().filter_map(|row| row.get(column));
            let widest = texts.map(|cell| cell.text.width()).max().unwrap_or(0);
            if widest == 0 { 0 } else { widest.max(heading.text.width()) }
        };
        let widths: Vec<usize> = self.headings.iter().enumerate().map(width).collect();
        let row = |row: &Row| match row {
            Row::Aligned(row) => line(row, &widths),
            Row::Aside(row) => line(row, &row.iter().map(|cell| cell.text.width()).collect::<Vec<_>>()),
        };
        std::iter::once(line(&self.headings, &widths)).chain(self.rows.iter().map(row)).collect()
    }
}

impl Row {
    fn aligned(&self) -> Option<&[Cell]> {
        match self {
            Self::Aligned(row) => Some(row),
            Self::Aside(_) => None,
        }
    }
}

fn line(row: &[Cell], widths: &[usize]) -> String {
    let mut line = String::new();
    let mut pending = 0;
    for (cell, width) in row.iter().zip(widths).filter(|(_, width)| **width > 0) {
        if !cell.text.is_empty() {
            line.push_str(&" ".repeat(pending));
            line.push_str(&cell.text.style(cell.style).to_string());
            pending = 0;
        }
        pending += width - cell.text.width() + 2;
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_aligned_by_what_is_seen_and_empty_ones_are_left_out() {
        let mut table = Table::new(["NAME", "LABEL", "AGE"]);
        table.row(["水獺".into(), "".into(), "5m".into()]);
        table.row(["a\tb".into(), "".into(), "".into()]);
        let seen: Vec<String> =
            table.lines().iter().map(|line| anstream::adapter::strip_str(line).to_string()).collect();
        assert_eq!(seen, ["NAME  AGE", "水獺  5m", "a\\tb"]);
    }
}
