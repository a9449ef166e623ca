//! What `visit-pacer doctor` finds: what is wrong, why it matters, and what mends it.
//!
//! Data and words only. Whoever looks, at the database or at Realtime, makes findings of what is seen.

use serde::Serialize;

/// How much it matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The agent does not start, does not get ready, or stores nothing.
    Stops,
    /// The agent works, but something that is promised is not kept.
    Hampers,
    /// Good to know.
    Note,
}

impl Severity {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Stops => "stops",
            Self::Hampers => "hampers",
            Self::Note => "note",
        }
    }
}

/// What mends a finding: first the SQL, where there is some, then what is done elsewhere.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Mend {
    /// Ready to run, by the owner of the tables.
    pub sql: Option<String>,
    /// A setting, a command, a decision.
    pub sql_functions: Option<String>,
}

/// One thing that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The check that found it: a stable name.
    pub check: &'static str,
    /// How much it matters.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What follows from it.
    pub why: &'static str,
    /// What to do.
    pub mend: Mend,
}

impl Finding {
    /// As people read it.
    pub fn text(&self) -> String {
        let mut lines = vec![
            format!("{:<8} {}: {}", self.severity.name(), self.check, self.what),
            format!("         {}", self.why),
        ];
        if let Some(sql) = &self.mend.sql {
            lines.push("         run this SQL:".to_owned());
            lines.extend(sql.lines().map(|line| format!("           {line}")));
        }
        if let Some(sql_functions) = &self.mend.sql_functions {
            let label = if self.mend.sql.is_some() {
                "then"
            } else {
                "do"
            };
            lines.push(format!("         {label}: {sql_functions}"));
        }
        lines.join("\n")
    }
}

/// All of them as people read it, the worst first.
pub fn report(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "all is well: nothing to mend".to_owned();
    }
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.severity);
    let texts: Vec<String> = sorted.iter().map(|finding| finding.text()).collect();
    texts.join("\n\n")
}

/// Whether one of them stops the agent.
pub fn stops(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.severity == Severity::Stops)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, sql: Option<&str>, sql_functions: Option<&str>) -> Finding {
        Finding {
            check: "a-check",
            severity,
            what: "it is so".to_owned(),
            why: "it should not be",
            mend: Mend {
                sql: sql.map(str::to_owned),
                sql_functions: sql_functions.map(str::to_owned),
            },
        }
    }

    #[test]
    fn a_finding_says_what_why_and_what_mends_it() {
        let text = finding(Severity::Stops, Some("a;\nb;"), Some("c")).text();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "stops    a-check: it is so",
                "it should not be",
                "run this SQL:",
                "a;",
                "b;",
                "then: c"
            ]
        );
    }

    #[test]
    fn the_worst_comes_first_and_only_that_stops() {
        let findings = [
            finding(Severity::Note, None, Some("x")),
            finding(Severity::Stops, None, Some("y")),
        ];
        assert!(report(&findings).starts_with("stops"));
        assert!(stops(&findings));
        assert!(!stops(&findings[..1]));
        assert!(report(&[]).contains("all is well"));
    }
}
