//! Findings of `visit-pacer doctor`: what is wrong, why it matters, and how to fix it.
//!
//! Data only; the checks of the database and of Realtime create them.

use serde::Serialize;

/// How serious a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The agent does not start, does not get ready, or stores nothing.
    Error,
    /// The agent works, but does not keep everything that is promised.
    Warning,
    /// For information.
    Info,
}

impl Severity {
    /// As it is printed.
    pub fn name(self) -> &'static str {
        match self {
            Self::Error => "error",
            Self::Warning => "warning",
            Self::Info => "info",
        }
    }
}

/// How to fix a finding: the SQL, if any, then the manual step.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct Fix {
    /// Ready to run as the owner of the tables.
    pub sql: Option<String>,
    /// A setting, a command or a decision outside of the database.
    pub manual: Option<String>,
}

/// One problem.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Finding {
    /// The stable name of the check.
    pub check: &'static str,
    /// How serious it is.
    pub severity: Severity,
    /// What was found.
    pub what: String,
    /// What follows from it.
    pub why: &'static str,
    /// What to do.
    pub fix: Fix,
}

impl Finding {
    /// As text for people.
    pub fn text(&self) -> String {
        let mut lines = vec![
            format!("{:<8} {}: {}", self.severity.name(), self.check, self.what),
            format!("         {}", self.why),
        ];
        if let Some(sql) = &self.fix.sql {
            lines.push("         run this SQL:".to_owned());
            lines.extend(sql.lines().map(|line| format!("           {line}")));
        }
        if let Some(manual) = &self.fix.manual {
            let label = if self.fix.sql.is_some() { "then" } else { "do" };
            lines.push(format!("         {label}: {manual}"));
        }
        lines.join("\n")
    }
}

/// All findings as text, the most serious first.
pub fn report(findings: &[Finding]) -> String {
    if findings.is_empty() {
        return "no problems found".to_owned();
    }
    let mut sorted: Vec<&Finding> = findings.iter().collect();
    sorted.sort_by_key(|finding| finding.severity);
    let texts: Vec<String> = sorted.iter().map(|finding| finding.text()).collect();
    texts.join("\n\n")
}

/// Whether the agent cannot work with these findings.
pub fn has_errors(findings: &[Finding]) -> bool {
    findings
        .iter()
        .any(|finding| finding.severity == Severity::Error)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn finding(severity: Severity, sql: Option<&str>, manual: Option<&str>) -> Finding {
        Finding {
            check: "a-check",
            severity,
            what: "it is so".to_owned(),
            why: "it should not be",
            fix: Fix {
                sql: sql.map(str::to_owned),
                manual: manual.map(str::to_owned),
            },
        }
    }

    #[test]
    fn a_finding_says_what_why_and_how_to_fix_it() {
        let text = finding(Severity::Error, Some("a;\nb;"), Some("c")).text();
        let lines: Vec<&str> = text.lines().map(str::trim).collect();
        assert_eq!(
            lines,
            [
                "error    a-check: it is so",
                "it should not be",
                "run this SQL:",
                "a;",
                "b;",
                "then: c"
            ]
        );
    }

    #[test]
    fn the_worst_comes_first_and_only_an_error_fails() {
        let findings = [
            finding(Severity::Info, None, Some("x")),
            finding(Severity::Error, None, Some("y")),
        ];
        assert!(report(&findings).starts_with("error"));
        assert!(has_errors(&findings));
        assert!(!has_errors(&findings[..1]));
        assert!(report(&[]).contains("no problems"));
    }
}
