//! The report: rows, as a table for people and as JSON for programs.

use serde::Serialize;
use std::fmt::Write as _;

/// How something stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// There.
    Ok,
    /// Not as good as it could be; Holdfast works all the same, or without one feature.
    Limited,
    /// Not there; what needs it does not work.
    Missing,
}

impl State {
    const fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Limited => "limited",
            Self::Missing => "missing",
        }
    }
}

/// One thing that the host has or lacks.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Row {
    /// Stable name for programs.
    pub id: &'static str,
    /// Name for people.
    pub name: &'static str,
    /// How it stands.
    pub state: State,
    /// What was found.
    pub found: String,
    /// The line that mends the lack, where there is one.
    pub mend: Option<String>,
    /// What needs it.
    pub needed_for: &'static str,
}

impl Row {
    pub(crate) fn ok(
        id: &'static str,
        name: &'static str,
        found: impl Into<String>,
        needed_for: &'static str,
    ) -> Self {
        Self { id, name, state: State::Ok, found: found.into(), mend: None, needed_for }
    }

    pub(crate) fn lacking(mut self, state: State, mend: impl Into<String>) -> Self {
        self.state = state;
        self.mend = Some(mend.into());
        self
    }
}

/// All rows.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Report {
    /// In a fixed order.
    pub rows: Vec<Row>,
}

impl Report {
    /// The row of this id.
    #[must_use]
    pub fn row(&self, id: &str) -> Option<&Row> {
        self.rows.iter().find(|row| row.id == id)
    }

    /// The rows whose thing is not there.
    pub fn missing(&self) -> impl Iterator<Item = &Row> {
        self.rows.iter().filter(|row| row.state == State::Missing)
    }

    /// Aligned columns, with the mend on a line of its own below what it mends.
    #[must_use]
    pub fn to_table(&self) -> String {
        let width =
            |cell: fn(&Row) -> &str| self.rows.iter().map(|row| cell(row).chars().count()).max().unwrap_or(0);
        let (names, states) = (width(|row| row.name), width(|row| row.state.word()));
        let mut text = String::new();
        for row in &self.rows {
            let line = writeln!(
                text,
                "{:states$}  {:names$}  {}  [{}]",
                row.state.word(),
                row.name,
                row.found,
                row.needed_for
            );
            let mend = row
                .mend
                .iter()
                .try_for_each(|mend| writeln!(text, "{:states$}  {:names$}  mend: {mend}", "", ""));
            line.and(mend).expect("a string takes all text");
        }
        text
    }

    /// The rows as JSON, indented.
    ///
    /// # Panics
    /// Never: the report holds texts only.
    #[must_use]
    pub fn to_json(&self) -> String {
        serde_json::to_string_pretty(self).expect("texts can be written as JSON")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report() -> Report {
        Report {
            rows: vec![
                Row::ok("kvm", "KVM", "version 12", "guests"),
                Row::ok("huge_pages", "huge pages", "none", "speed").lacking(State::Missing, "do this"),
            ],
        }
    }

    #[test]
    fn the_table_is_aligned_and_each_lack_has_its_mend_below() {
        assert_eq!(
            report().to_table(),
            "ok       KVM         version 12  [guests]\n\
             missing  huge pages  none  [speed]\n\
             \u{20}                    mend: do this\n"
        );
    }

    #[test]
    fn the_json_has_every_column_under_a_stable_name() {
        let value: serde_json::Value = serde_json::from_str(&report().to_json()).expect("well-formed");
        let row = &value["rows"][1];
        assert_eq!(row["id"], "huge_pages");
        assert_eq!(row["state"], "missing");
        assert_eq!(row["mend"], "do this");
        assert_eq!(value["rows"][0]["mend"], serde_json::Value::Null);
        assert_eq!(report().missing().count(), 1);
    }
}
