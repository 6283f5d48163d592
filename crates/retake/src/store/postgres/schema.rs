//! The tables, by format.

/// The format that this version writes.
pub(super) const FORMAT: u32 = 1;

/// What makes the tables of format 1.
pub(super) const FORMAT_1: &str = "";

/// What takes a store from the format before to each format, in their order, from nothing on.
pub(super) const MIGRATIONS: &[(u32, &str)] = &[(FORMAT, FORMAT_1)];
