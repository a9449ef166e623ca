//! Users' own schemas, one after the other: each works, or is refused beforehand with nothing changed; and after `uninstall` the schema
//! is what it was.

use visit_pacer::postgres::migrations::{self, MigrateError};

use super::Database;
use super::uninstall::{PICTURE, UNINSTALL, differences};
use crate::harness::{Place, server};

/// What is expected of a schema.
enum Outcome {
    /// Visits are stored, and all is taken back.
    Works,
    /// `migrate` refuses it with a message that has this part.
    Refused(&'static str),
}
use Outcome::{Refused, Works};

/// One user's tables.
struct Schema {
    name: &'static str,
    /// The type of ids of partners, and how one is written.
    partner: (&'static str, &'static str),
    /// Columns of `visit_distribution` besides `partner_id`.
    distribution: &'static str,
    /// Columns of `store_visits` besides `partner_id`.
    visits: &'static str,
    /// What follows the columns of `store_visits`.
    visits_as: &'static str,
    /// SQL before and after the tables.
    around: (&'static str, &'static str),
    outcome: Outcome,
}

const UUID: (&str, &str) = ("uuid", "'e2731c06-58b4-4f37-96c7-f721af43263c'");
const DISTRIBUTION: &str = "id uuid primary key default gen_random_uuid(), total_visits integer, time_period text, visits_per_unit numeric,
  is_active boolean default true, start_time timestamptz default now(), end_time timestamptz, total_distributed numeric default 0";
const VISITS: &str = "id uuid primary key default gen_random_uuid(), visited_at timestamptz default now(), session_duration integer, page_path text";

const fn schema(name: &'static str) -> Schema {
    Schema {
        name,
        partner: UUID,
        distribution: DISTRIBUTION,
        visits: VISITS,
        visits_as: "",
        around: ("", ""),
        outcome: Works,
    }
}

const SCHEMAS: &[Schema] = &[
        schema("the setup guide's columns"),
        Schema {
            partner: ("text", "'ckv2x8m1q0000qzrmn831i7rn'"),
            visits: "id text primary key default gen_random_uuid()::text, visited_at timestamptz default now(), page_path text",
            ..schema("text ids with a default")
        },
        Schema {
            partner: ("text", "'ckv2x8m1q0000qzrmn831i7rn'"),
            visits: "id text primary key, visited_at timestamptz default now(), page_path text",
            outcome: Refused("public.store_visits.id is text without a default; give it a default or an identity, or make it uuid"),
            ..schema("text ids that the application makes (Prisma)")
        },
        Schema {
            partner: ("bigint", "7"),
            visits: "id bigint generated always as identity primary key, visited_at timestamptz default now(), page_path text",
            ..schema("bigint identity ids")
        },
        Schema {
            partner: ("integer", "7"),
            visits: "id serial primary key, visited_at timestamp(3) default now(), session_duration numeric(10,2), page_path varchar(255)",
            distribution: "id uuid primary key default gen_random_uuid(), total_visits bigint, time_period varchar(16) not null,
              visits_per_unit double precision, is_active boolean not null default true, start_time timestamp(3) default now(),
              end_time timestamp(3), total_distributed bigint default 0, updated_at timestamp(3) not null default now()",
            ..schema("serial ids, timestamps without a zone (Drizzle)")
        },
        Schema {
            distribution: "id uuid primary key default gen_random_uuid(), total_visits integer, time_period period, visits_per_unit numeric,
              is_active boolean default true, start_time timestamptz default now(), end_time timestamptz",
            visits: "id uuid primary key, visited_at timestamptz not null, page_path text not null, device_type device not null",
            around: ("create type period as enum ('second', 'minute', 'hour', 'day'); create type device as enum ('tablet', 'mobile', 'desktop');", ""),
            ..schema("enums with the values of visits, ids without a default")
        },
        Schema {
            visits: "id uuid primary key default gen_random_uuid(), visited_at timestamptz, device_type device",
            around: ("create type device as enum ('kiosk', 'phone');", ""),
            ..schema("an enum of another meaning, nullable")
        },
        Schema {
            visits: "id uuid primary key default gen_random_uuid(), visited_at timestamptz, device_type device not null",
            around: ("create type device as enum ('kiosk', 'phone');", ""),
            outcome: Refused("public.store_visits.device_type is device, which does not take 'desktop'"),
            ..schema("an enum of another meaning that has to be filled")
        },
        Schema {
            visits: "id uuid primary key default gen_random_uuid(), visited_at timestamptz, session_duration integer, page_path text,
              minutes numeric generated always as (session_duration / 60.0) stored, referrer text generated always as ('none') stored",
            ..schema("generated columns")
        },
        Schema {
            visits: "id uuid primary key default gen_random_uuid(), visited_at timestamptz, source text not null default 'web',
              flags jsonb not null default '{}', \"sessionId\" uuid not null default gen_random_uuid()",
            ..schema("NOT NULL extras with defaults, mixed-case names")
        },
        Schema {
            visits: "id uuid not null default gen_random_uuid(), visited_at timestamptz not null, page_path text, primary key (id, visited_at)",
            visits_as: "partition by range (visited_at)",
            around: ("", "create table store_visits_default partition of store_visits default;"),
            ..schema("partitioned visits")
        },
        Schema {
            around: ("", "alter table store_visits set unlogged;"),
            ..schema("unlogged visits")
        },
        Schema {
            around: ("", "create table partner_stats (partner_id uuid primary key, visits bigint not null);
              create function count_visit() returns trigger language plpgsql as $$ begin
                insert into partner_stats values (new.partner_id, 1) on conflict (partner_id) do update set visits = partner_stats.visits + 1;
                return new; end $$;
              create trigger count_visit after insert on store_visits for each row execute function count_visit();"),
            ..schema("a counter trigger that names its table without a schema")
        },
        Schema {
            around: ("", "alter table visit_distribution enable row level security; alter table visit_distribution force row level security;
              alter table store_visits enable row level security; alter table store_visits force row level security;"),
            ..schema("row level security, forced")
        },
        Schema {
            visits: "id uuid primary key default gen_random_uuid(), visited_at timestamptz(0), page_path char(40)",
            ..schema("visited_at in whole seconds")
        },
        Schema {
            around: ("create schema app; create table app.store_visits (id integer); create table app.partners (id integer);", ""),
            ..schema("tables of the same names in another schema")
        },
        Schema {
            around: ("", "create view organic_store_visits as select count(*) as visits from store_visits;
              create function distribute_visits() returns integer language sql as 'select 1';"),
            ..schema("a view and a function of the user's in the way")
        },
        Schema {
            around: ("", "create view visit_distribution_status as select 1 as one; create view on_it as select * from visit_distribution_status;"),
            outcome: Refused("rule _RETURN on view on_it depends on it; drop or change that first"),
            ..schema("a view in the way on which another depends")
        },
        Schema {
            partner: ("numeric", "7"),
            outcome: Refused("public.partners.id is numeric; expected uuid, bigint, integer or text"),
            ..schema("numeric ids of partners")
        },
    ];

impl Schema {
    fn sql(&self) -> String {
        let Self {
            partner: (partner, id),
            distribution,
            visits,
            visits_as,
            around: (before, after),
            ..
        } = self;
        format!(
            "{before} create table partners (id {partner} primary key, name text); insert into partners values ({id}, 'a');
             create table visit_distribution ({distribution}, partner_id {partner} references partners (id));
             create table store_visits ({visits}, partner_id {partner} not null references partners (id)) {visits_as}; {after}"
        )
    }
}

#[tokio::test]
async fn each_users_schema_works_or_is_refused_beforehand_and_uninstall_gives_it_back() {
    for schema in SCHEMAS {
        let name = schema.name;
        let mut db = Database::empty().await;
        db.run(schema.sql()).await;
        let before = db.said(PICTURE).await;
        let applied = migrations::apply(&mut db.connection).await;
        match &schema.outcome {
            Refused(part) => {
                let Err(MigrateError::Refused(message)) = applied else {
                    panic!("{name}: not refused: {applied:?}");
                };
                assert!(message.contains(*part), "{name}: {message}");
            }
            Works => {
                applied.unwrap_or_else(|error| panic!("{name}: {error}"));
                stores_visits(&mut db, schema).await;
                db.run(format!("delete from visit_distribution; set visit_pacer.keep_visits = 'no'; {UNINSTALL}"))
                    .await;
            }
        }
        assert_eq!(
            differences(&before, &db.said(PICTURE).await),
            [""; 0],
            "{name}"
        );
        println!("{name}: as expected");
    }
}

/// Ten seconds at 5 a second are stored, each within its window, labelled and counted.
async fn stores_visits(db: &mut Database, schema: &Schema) {
    let (name, (_, id)) = (schema.name, schema.partner);
    db.run(format!(
        "insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit, start_time, end_time)
         values ({id}, 50, 'second', 5, timezone('UTC', now() - interval '20 seconds') at time zone 'UTC',
                 timezone('UTC', now() - interval '10 seconds') at time zone 'UTC')"
    ))
    .await;
    let told = db.distribute().await;
    assert_eq!(
        told.iter().map(|line| line.0).sum::<i64>(),
        50,
        "{name}: {told:?}"
    );
    let odd: i64 = db
        .ask(
            "select count(*) from store_visits s join visit_distribution v on v.id = s.distribution_id
              where public.visit_pacer_utc(s.visited_at) not between public.visit_pacer_utc(v.start_time) - interval '1 second'
                                                                 and public.visit_pacer_utc(v.end_time)",
        )
        .await;
    assert_eq!(odd, 0, "{name}: visits outside the window");
    let by_hand = db
        .said(format!(
            "select message from distribute_visits_for_partner({id}, 5)"
        ))
        .await;
    assert_eq!(by_hand, ["completed"], "{name}");
    assert_eq!(
        db.said("select * from sync_distribution_counts()").await,
        [""; 0],
        "{name}"
    );
    let status = db
        .said("select status, distributed, backlog from visit_distribution_status")
        .await;
    assert_eq!(status, ["completed|50|0"], "{name}");
}

#[tokio::test]
async fn columns_may_be_altered_dropped_and_added_and_the_write_and_the_view_follow() {
    let mut db = Database::empty().await;
    db.run(schema("").sql()).await;
    db.migrate().await;
    db.run(
        "insert into visit_distribution (partner_id, total_visits, time_period, visits_per_unit)
           select id, 100000, 'second', 10 from partners",
    )
    .await;
    for change in [
        "alter table store_visits alter column page_path type varchar(500)",
        "alter table store_visits alter column session_duration type bigint",
        "alter table visit_distribution alter column total_visits type numeric",
        "alter table visit_distribution alter column visits_per_unit type numeric(12,4)",
        "alter table store_visits drop column page_path",
        "alter table store_visits drop column referrer",
        "alter table store_visits add column country text",
    ] {
        db.run(change).await;
        let added = db.sql_functions(super::GUIDES_PARTNER, 5).await;
        assert_eq!(added[0].0, 5, "{change}: {added:?}");
        db.ask::<i64>("select count(*) from organic_store_visits")
            .await;
    }
    let country = "select count(*) from information_schema.columns where table_name = 'organic_store_visits' and column_name = 'country'";
    assert_eq!(db.ask::<i64>(country).await, 1);
}

#[tokio::test]
async fn a_trigger_that_discards_visits_stops_only_its_distribution_and_is_named() {
    let mut db = Database::migrated().await;
    let (kept, discarded) = (db.partner().await, db.partner().await);
    for partner in [kept, discarded] {
        db.insert(partner, 1_000, "10 a second", "-10 seconds", "1 hour")
            .await;
    }
    db.run(format!(
        "create function discard() returns trigger language plpgsql as $$ begin
           if new.partner_id = '{discarded}' then return null; end if; return new; end $$;
         create trigger discard before insert on store_visits for each row execute function discard()"
    ))
    .await;
    let told: Vec<(i64, String)> = db
        .rows(format!(
            "select visits_added, message from distribute_visits() order by partner_id = '{discarded}'"
        ))
        .await;
    assert!(told[0].0 >= 100, "{told:?}");
    assert_eq!(told[1].0, 0, "{told:?}");
    assert!(
        told[1].1.contains("discarded by a trigger on store_visits")
            && told[1].1.contains("discard"),
        "{told:?}"
    );
    let counted = "select distributed from visit_distribution_progress p join visit_distribution v on v.id = p.distribution_id";
    assert_eq!(
        db.ask::<i64>(format!("{counted} where v.partner_id = '{discarded}'"))
            .await,
        0,
        "what is not stored is not counted"
    );
}

#[tokio::test]
async fn an_agent_stores_on_text_ids_identity_and_a_counter_trigger_and_follows_a_dropped_column() {
    let url = server::database().await;
    let mut db = Database::at(url.clone()).await;
    let tables = Schema {
        partner: ("text", "'ckv2x8m1q0000qzrmn831i7rn'"),
        visits: "id bigint generated always as identity primary key, visited_at timestamptz, page_path varchar(8), referrer text",
        around: ("", "create table partner_stats (partner_id text primary key, visits bigint not null);
          create function count_visit() returns trigger language plpgsql as $$ begin
            insert into partner_stats values (new.partner_id, 1) on conflict (partner_id) do update set visits = partner_stats.visits + 1;
            return new; end $$;
          create trigger count_visit after insert on store_visits for each row execute function count_visit();"),
        ..schema("")
    };
    db.run(tables.sql()).await;
    let place = Place::over(url).await;
    let agent = place.agent().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    place.has_stored(row, 40).await;
    place
        .edit("alter table store_visits drop column referrer")
        .await;
    let before = place.stored(row).await;
    place.has_stored(row, before + 60).await;
    let counted = "select visits = (select count(*) from store_visits) from partner_stats where visits > 0 limit 1";
    place.set(row, "is_active = false").await;
    assert!(
        place.ask::<bool>(counted).await,
        "the user's counter is exact"
    );
    place.ledger_is_sound(row).await;
    assert!(!agent.log().contains("migrate"), "{}", agent.log());
}
