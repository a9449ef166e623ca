//! Looks a database over: whether it has what the agent needs, and what mends what it lacks.
//!
//! Owns the order of the looks, and the one look that is no query: a visit that is stored and taken back at once. Changes
//! nothing. What is looked at is in [`checks`].

use serde_json::json;
use sqlx::{Connection as _, Row as _};

use self::checks::{ACCESS, BROADCAST, Check, PUBLICATION, RIGHTS, ROWS, SCHEMA, SERVER, TABLES};
use super::connection::Connection;
use super::{migrations, rows};
use crate::domain::distribution::Distribution;
use crate::domain::finding::{Finding, Fix, Severity, has_errors};
use crate::domain::schedule::RowRead;
use crate::domain::time::DbTime;

mod checks;

/// Findings that one check may have at the most.
const FINDINGS_PER_CHECK: usize = 20;
/// Beyond this the host's clock is worth a note, in microseconds.
const CLOCK_OFFSET_US: i64 = 1_000_000;

/// Looks at everything that can be seen from inside the database. What lies behind a closed door is looked at by the next
/// run: rights first, then the schema, then what is in it.
pub async fn examine(connection: &mut Connection) -> Result<Vec<Finding>, sqlx::Error> {
    let mut findings = run(connection, SERVER).await;
    for checks in [ACCESS, RIGHTS] {
        let closed = run(connection, checks).await;
        let is_closed = has_errors(&closed);
        findings.extend(closed);
        if is_closed {
            return Ok(findings);
        }
    }
    if let Some(finding) = missing_migrations(connection).await? {
        findings.push(finding);
        return Ok(findings);
    }
    let schema = run(connection, SCHEMA).await;
    let whole = schema.is_empty();
    findings.extend(schema);
    findings.extend(run(connection, PUBLICATION).await);
    findings.extend(run(connection, BROADCAST).await);
    if whole {
        findings.extend(run(connection, TABLES).await);
        findings.extend(run(connection, ROWS).await);
        findings.extend(visits_can_be_stored(connection).await?);
        if findings.iter().all(|finding| finding.check != "types") {
            findings.extend(invalid_rows(&rows::every(connection).await?.rows));
        }
    }
    Ok(findings)
}

/// How far this host's clock is from the database's. The agent does not care; a reader of logs may.
pub fn clock_offset(host: DbTime, db: DbTime) -> Option<Finding> {
    let offset_us = host.micros_since(db);
    (offset_us.abs() > CLOCK_OFFSET_US).then(|| Finding {
        check: "clock",
        severity: Severity::Info,
        what: format!(
            "this host's clock is {} ms from the database's",
            offset_us / 1_000
        ),
        why: "the agent paces by the database's clock; only the times in its log differ",
        fix: Fix {
            sql: None,
            manual: Some("have the host's clock set by NTP".to_owned()),
        },
    })
}

/// The SQL that lets a role read our private topic, as broadcast.sql does for `visit_pacer`.
pub fn let_read_the_topic(role: &str) -> String {
    let quoted = format!("\"{}\"", role.replace('"', "\"\""));
    format!(
        "drop policy if exists visit_pacer_agent on realtime.messages;
create policy visit_pacer_agent on realtime.messages for select to {quoted} using (topic = 'visit_pacer');
grant usage on schema realtime to {quoted};
grant select on realtime.messages to {quoted};"
    )
}

/// Running rows that cannot be paced, or whose inserts fail. A row without an anchor has a check of its own.
fn invalid_rows(rows: &[RowRead]) -> Vec<Finding> {
    let running = rows
        .iter()
        .filter(|read| read.row.is_active == Some(true) && read.row.anchor_at.is_some());
    let reason = |read: &RowRead| match Distribution::parse(&read.row) {
        Err(why) => Some(why.to_string()),
        Ok(_) => read.progress.as_ref().and_then(|p| p.invalid.clone()),
    };
    running
        .filter_map(|read| Some((read.row.id, reason(read)?)))
        .take(FINDINGS_PER_CHECK)
        .map(|(id, reason)| {
            let (what, hint) = reason
                .split_once("; ")
                .unwrap_or((&reason, "mend what the message says"));
            Finding {
                check: "invalid-rows",
                severity: Severity::Warning,
                what: format!("distribution {id}: {what}"),
                why: "nothing is stored for this row; every other row goes on",
                fix: Fix {
                    sql: Some(format!(
                        "update public.visit_distribution set is_active = false where id = '{id}';"
                    )),
                    manual: Some(format!("{hint}; then make it active again")),
                },
            }
        })
        .collect()
}

async fn missing_migrations(connection: &mut Connection) -> Result<Option<Finding>, sqlx::Error> {
    let missing = migrations::missing(connection).await?;
    let names: Vec<&str> = missing.iter().map(|file| file.name).collect();
    Ok((!names.is_empty()).then(|| Finding {
        check: "migrations",
        severity: Severity::Error,
        what: format!("not applied: {}", names.join(", ")),
        why: "the agent does not start without the whole schema; the other checks wait for it",
        fix: Fix {
            sql: None,
            manual: Some(
                "visit-pacer migrate   (or supabase db push; visit-pacer migrate --print has the SQL)"
                    .to_owned(),
            ),
        },
    }))
}

/// Runs checks one by one, each by itself: one that fails is a finding, too.
async fn run(connection: &mut Connection, checks: &[Check]) -> Vec<Finding> {
    let mut findings = Vec::new();
    for check in checks {
        match look(connection, check).await {
            Ok(found) => findings.extend(found),
            Err(error) => findings.push(Finding {
                check: check.name,
                severity: Severity::Warning,
                what: format!("could not be looked at: {error}"),
                why: check.why,
                fix: Fix {
                    sql: None,
                    manual: Some("run doctor as the owner of the tables".to_owned()),
                },
            }),
        }
    }
    findings
}

async fn look(connection: &mut Connection, check: &Check) -> Result<Vec<Finding>, sqlx::Error> {
    let mut query = sqlx::query(check.sql);
    if check.sql.contains("$1") {
        query = query.bind(json!(migrations::objects().collect::<Vec<_>>()).to_string());
    }
    let rows = query.fetch_all(connection).await?;
    rows.iter()
        .take(FINDINGS_PER_CHECK)
        .map(|row| {
            Ok(Finding {
                check: check.name,
                severity: check.severity,
                what: row.try_get("what")?,
                why: check.why,
                fix: Fix {
                    sql: row.try_get("sql")?,
                    manual: row.try_get("manual")?,
                },
            })
        })
        .collect()
}

/// A visit as `visit_pacer_store()` stores it, for the partner of a distribution where there is one.
const PROBE: &str = "
  do $probe$
  declare
    stored bigint;
  begin
    execute (select format('insert into public.store_visits (%s) select %s from (
                              select row(gen_random_uuid(), coalesce((select partner_id::text from public.visit_distribution limit 1),
                                                                     (select id::text from public.partners limit 1)),
                                         1, gen_random_uuid(), clock_timestamp(), 90, ''/'', ''visit-pacer doctor'', null, ''desktop''
                                        )::public.visit_pacer_batch_visit as visit) v',
                           string_agg(quote_ident(c.name), ', '), string_agg(c.expression, ', '))
               from public.visit_pacer_visit_columns() c);
    get diagnostics stored = row_count;
    if stored = 0 then
      raise exception using errcode = 'VP001', message = 'a trigger on store_visits discards it';
    end if;
  end $probe$";

/// SQLSTATEs of the probe.
const NOT_NULL_VIOLATION: &str = "23502";
const FOREIGN_KEY_VIOLATION: &str = "23503";
const INSUFFICIENT_PRIVILEGE: &str = "42501";

/// Stores a visit and takes it back: NOT NULL columns that nothing fills, checks and triggers of the user's show up here.
async fn visits_can_be_stored(connection: &mut Connection) -> Result<Option<Finding>, sqlx::Error> {
    let mut transaction = connection.simple().begin().await?;
    let probed = sqlx::raw_sql(PROBE).execute(&mut *transaction).await;
    transaction.rollback().await?;
    let error = match probed {
        Ok(_) => return Ok(None),
        Err(sqlx::Error::Database(error)) => error,
        Err(error) => return Err(error),
    };
    match error.code().unwrap_or_default().as_ref() {
        // The key is looked at last: all else was in order, and the partner was made up.
        FOREIGN_KEY_VIOLATION => Ok(None),
        // The checks of rights name it.
        INSUFFICIENT_PRIVILEGE => Ok(None),
        NOT_NULL_VIOLATION => unfilled(connection).await.map(Some),
        code => Ok(Some(Finding {
            check: "insert",
            severity: Severity::Error,
            what: format!("a visit cannot be stored: {} ({code})", error.message()),
            why: "every batch would be refused like this",
            fix: Fix {
                sql: None,
                manual: Some(
                    "change the constraint or trigger of store_visits that the message names"
                        .to_owned(),
                ),
            },
        })),
    }
}

/// NOT NULL columns without a default that a generated visit does not have, with an expression for each.
const UNFILLED: &str = r"
  select quote_ident(a.attname) as name, format_type(a.atttypid, null) as type,
         case
           when t.typcategory = 'N' and a.attname ~ 'duration|seconds|time_on|length' then 'new.session_duration'
           when t.typcategory = 'T' and a.attname ~ 'duration|length' then 'make_interval(secs => new.session_duration)'
           when t.typcategory = 'S' and a.attname ~ 'path|page|url' then 'new.page_path'
           when t.typcategory = 'S' and a.attname ~ 'agent|browser' then 'new.user_agent'
           when t.typcategory = 'S' and a.attname ~ 'device' then 'new.device_type'
           when t.typcategory = 'S' and a.attname ~ 'refer' then quote_literal('')
           when t.typcategory = 'D' then 'new.visited_at'
         end as expression,
         case
           when t.typtype = 'e' then (select quote_literal(e.enumlabel) from pg_enum e where e.enumtypid = t.oid order by e.enumsortorder limit 1)
           when t.typcategory = 'N' then '0'
           when t.typcategory = 'B' then 'false'
           when t.typcategory = 'T' then quote_literal('0')
           when t.typcategory = 'A' then quote_literal('{}')
           when t.typcategory = 'I' then quote_literal('0.0.0.0')
           when t.typname in ('json', 'jsonb') then quote_literal('{}')
           when t.typname = 'uuid' then 'gen_random_uuid()'
           else quote_literal('')
         end as placeholder
    from pg_attribute a join pg_type t on t.oid = a.atttypid
   where a.attrelid = 'public.store_visits'::regclass and a.attnum > 0 and not a.attisdropped
     and a.attnotnull and not a.atthasdef and a.attidentity = ''
     and a.attname not in ('distribution_id', 'partner_id', 'visit_number', 'id', 'visited_at', 'session_duration', 'page_path', 'user_agent', 'device_type')
   order by a.attnum";

/// The finding about those columns, with a trigger that fills all of them, ready to run.
async fn unfilled(connection: &mut Connection) -> Result<Finding, sqlx::Error> {
    let rows = sqlx::query(UNFILLED).fetch_all(connection).await?;
    let (mut names, mut lines) = (Vec::new(), Vec::new());
    for row in &rows {
        let (name, kind): (String, String) = (row.try_get("name")?, row.try_get("type")?);
        let fits: Option<String> = row.try_get("expression")?;
        let placeholder: String = row.try_get("placeholder")?;
        let column = format!("new.{name}");
        let remark = if fits.is_some() {
            String::new()
        } else {
            format!("  -- {kind}: a placeholder, put what suits you")
        };
        let value = fits.unwrap_or(placeholder);
        lines.push(format!(
            "    {column} := coalesce({column}, {value});{remark}"
        ));
        names.push(name);
    }
    Ok(Finding {
        check: "not-null",
        severity: Severity::Error,
        what: format!(
            "store_visits has NOT NULL columns that nothing fills: {}",
            names.join(", ")
        ),
        why: "every batch would be refused; through this trigger pass agent, cron and functions alike",
        fix: Fix {
            sql: Some(trigger(&lines)),
            manual: None,
        },
    })
}

/// A trigger and a function that are ours by name and comment, so that an uninstall takes them along.
fn trigger(lines: &[String]) -> String {
    format!(
        "create or replace function public.visit_pacer_fill() returns trigger
language plpgsql set search_path = '' as $$
begin
  if new.distribution_id is not null then
{}
  end if;
  return new;
end $$;
comment on function public.visit_pacer_fill is 'visit-pacer: fills columns of generated visits';
create or replace trigger zzz_visit_pacer_fill before insert on public.store_visits
  for each row execute function public.visit_pacer_fill();",
        lines.join("\n")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_that_is_off_by_more_than_a_second_is_a_note() {
        let db = DbTime::from_micros(1_800_000_000_000_000);
        assert_eq!(clock_offset(db.plus_micros(900_000), db), None);
        let note = clock_offset(db.plus_micros(-90_000_000), db).expect("a note");
        assert_eq!(note.severity, Severity::Info);
        assert!(note.what.contains("-90000 ms"), "{}", note.what);
    }
}
