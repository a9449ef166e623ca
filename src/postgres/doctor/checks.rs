//! What is looked at, one query each: every row is a finding.
//!
//! A query gives `what` was found, the `sql` that mends it, and what a person has to do (`manual`); either of the last two may be
//! null. They are asked as the role that the agent uses.

use crate::domain::finding::Severity;

/// One query.
pub struct Check {
    /// Its stable name.
    pub name: &'static str,
    /// How much its findings matter.
    pub severity: Severity,
    /// What follows from its findings.
    pub why: &'static str,
    /// Three columns of text: `what`, `sql`, `manual`. `$1`, where it occurs: the objects of the migrations, as JSON.
    pub sql: &'static str,
}

/// Whether the schema is whole. Where one of these finds something, the rest is not looked at.
pub const SCHEMA: &[Check] = &[
    Check {
        name: "columns",
        severity: Severity::Error,
        why: "the agent reads and writes this column",
        sql: "
  select format('public.%s has no column %s', w.relation, w.name) as what,
         format('alter table public.%I add column %I %s;', w.relation, w.name, w.type) as sql, null::text as manual
    from (values
      ('visit_distribution', 'id', 'uuid'), ('visit_distribution', 'partner_id', public.visit_pacer_partner_type()), ('visit_distribution', 'total_visits', 'bigint'),
      ('visit_distribution', 'time_period', 'text'), ('visit_distribution', 'visits_per_unit', 'numeric'),
      ('visit_distribution', 'is_active', 'boolean default true'), ('visit_distribution', 'start_time', 'timestamptz default now()'),
      ('visit_distribution', 'end_time', 'timestamptz'), ('visit_distribution', 'total_distributed', 'numeric default 0'),
      ('visit_distribution', 'last_distribution', 'timestamptz'), ('visit_distribution', 'updated_at', 'timestamptz default now()'),
      ('visit_distribution', 'catch_up', 'numeric'), ('visit_distribution', 'config_version', 'bigint'),
      ('visit_distribution', 'anchor_units', 'numeric'), ('visit_distribution', 'anchor_at', 'timestamptz'), ('visit_distribution', 'changed_xid', 'xid8'),
      ('store_visits', 'partner_id', public.visit_pacer_partner_type()), ('store_visits', 'visited_at', 'timestamptz'),
      ('store_visits', 'distribution_id', 'uuid'), ('store_visits', 'visit_number', 'bigint')) as w (relation, name, type)
   where to_regclass('public.' || w.relation) is not null
     and not exists (select from pg_attribute a where a.attrelid = to_regclass('public.' || w.relation) and a.attname = w.name and not a.attisdropped)",
    },
    Check {
        name: "objects",
        severity: Severity::Error,
        why: "the agent, the SQL functions and the status view need it",
        sql: "
  select format('missing in public: %s', string_agg(case o.kind when 'function' then o.name || '()' else o.name end, ', ' order by o.nth)) as what,
         'delete from public.visit_pacer_migrations;  -- each file can be applied again' as sql, 'visit-pacer migrate' as manual
    from (select distinct on (kind, name) kind, name, nth
            from rows from (jsonb_to_recordset($1::text::jsonb) as (kind text, name text)) with ordinality as r (kind, name, nth)
           order by kind, name, nth) o
   where not case o.kind
           when 'function' then exists (select from pg_proc p where p.pronamespace = 'public'::regnamespace and p.proname = o.name)
           when 'type' then to_regtype('public.' || o.name) is not null
           else o.kind = 'trigger' or to_regclass('public.' || o.name) is not null end
  having count(*) > 0",
    },
];

/// The tables, once the schema is whole.
pub const TABLES: &[Check] = &[
    Check {
        name: "types",
        severity: Severity::Error,
        why: "what is written there cannot be computed with, or loses what is stored; the ALTER rewrites the table under a lock",
        sql: "
  select format('public.%s.%s is of type %s; expected %s', w.relation, w.name, format_type(a.atttypid, a.atttypmod), w.type) as what,
         format(E'drop view if exists public.%I;\\nalter table public.%I alter column %I drop default, alter column %I type %s using %I::%s%s;\\n'
                'delete from public.visit_pacer_migrations where version = ''20261201000400'';',
           w.on_it, w.relation, w.name, w.name, w.type, w.name, w.type, format(', alter column %I set default ', w.name) || w.usual) as sql, 'visit-pacer migrate' as manual
    from (values
      ('visit_distribution', 'total_visits', 'N', 'bigint', null, 'visit_distribution_status'),
      ('visit_distribution', 'visits_per_unit', 'N', 'numeric', null, 'visit_distribution_status'),
      ('visit_distribution', 'total_distributed', 'N', 'numeric', '0', 'visit_distribution_status'),
      ('visit_distribution', 'time_period', 'SE', 'text', null, 'visit_distribution_status'),
      ('visit_distribution', 'is_active', 'B', 'boolean', 'true', 'visit_distribution_status'),
      ('visit_distribution', 'start_time', 'D', 'timestamptz', 'now()', 'visit_distribution_status'),
      ('visit_distribution', 'end_time', 'D', 'timestamptz', null, 'visit_distribution_status'),
      ('visit_distribution', 'id', 'U', 'uuid', 'gen_random_uuid()', 'visit_distribution_status'),
      ('store_visits', 'visited_at', 'D', 'timestamptz', null, 'organic_store_visits'),
      ('store_visits', 'distribution_id', 'U', 'uuid', null, 'organic_store_visits'),
      ('store_visits', 'visit_number', 'N', 'bigint', null, 'organic_store_visits')) as w (relation, name, categories, type, usual, on_it)
    join pg_attribute a on a.attrelid = to_regclass('public.' || w.relation) and a.attname = w.name and not a.attisdropped
    join pg_type t on t.oid = a.atttypid
   where strpos(w.categories, t.typcategory::text) = 0 or (w.categories = 'U' and t.typname <> 'uuid')
      or (w.categories = 'D' and t.typname not in ('timestamptz', 'timestamp'))",
    },
    Check {
        name: "primary-key",
        severity: Severity::Error,
        why: "Realtime tells a row by its primary key, and the agent reads it by that",
        sql: "
  select format('public.%s has no primary key', w.relation) as what,
         format('alter table public.%I add primary key (id);', w.relation) as sql, null as manual
    from unnest(array['visit_distribution', 'partners', 'store_visits', 'visit_pacer_canary']) as w (relation)
   where not exists (select from pg_index i where i.indrelid = to_regclass('public.' || w.relation) and i.indisprimary)",
    },
    Check {
        name: "duplicate-guard",
        severity: Severity::Error,
        why: "this index is how the database itself refuses a visit that is stored already",
        sql: "
  select 'public.store_visits has no valid unique index on (distribution_id, visit_number)' as what,
         E'drop index if exists public.store_visits_distribution_visit_number;\\n'
         'create unique index store_visits_distribution_visit_number\\n'
         '  on public.store_visits (distribution_id, visit_number) where distribution_id is not null;' as sql,
         case when exists (select from pg_class c where c.relname = 'store_visits_distribution_visit_number')
           then 'where it says that a key is duplicated, two visits have one number: remove one of them first' end as manual
   where not exists (
     select from pg_index i
      where i.indrelid = 'public.store_visits'::regclass and i.indisunique and i.indisvalid
        and i.indkey::text = (select string_agg(a.attnum::text, ' ' order by a.attname) from pg_attribute a
                               where a.attrelid = i.indrelid and a.attname in ('distribution_id', 'visit_number'))
        and (i.indpred is null or pg_get_expr(i.indpred, i.indrelid) = '(distribution_id IS NOT NULL)'))",
    },
    Check {
        name: "replica-identity",
        severity: Severity::Error,
        why: "a published table whose rows cannot be told apart refuses every UPDATE and DELETE",
        sql: "
  select format('public.%s has no replica identity', c.relname) as what,
         format('alter table public.%I replica identity default;', c.relname) as sql, null as manual
    from pg_class c
   where c.relnamespace = 'public'::regnamespace and c.relname in ('visit_distribution', 'visit_pacer_canary')
     and (c.relreplident = 'n' or (c.relreplident = 'i' and not exists (select from pg_index i where i.indrelid = c.oid and i.indisreplident)))",
    },
    Check {
        name: "triggers",
        severity: Severity::Error,
        why: "edits take effect through these: without one, a change of the rate rewrites the past, or an invalid value is let in",
        sql: "
  select format('the trigger %s of %s %s', o.name, o.relation,
           case when t.oid is null then 'is missing' when t.tgenabled = 'D' then 'is disabled' else 'is not ENABLE ALWAYS' end) as what,
         case when t.oid is null then o.definition || E'\\n' else '' end
           || format('alter table public.%I enable %strigger %I;', o.relation, case when o.is_always then 'always ' else '' end, o.name) as sql,
         null as manual
    from (select r.name, r.definition, (regexp_match(r.definition, ' on public\\.(\\w+)'))[1] as relation, r.is_always
            from jsonb_to_recordset($1::text::jsonb) as r (kind text, name text, definition text, is_always boolean)
           where r.kind = 'trigger') o
    left join pg_trigger t on t.tgrelid = to_regclass('public.' || o.relation) and t.tgname = o.name
   where t.oid is null or t.tgenabled <> case when o.is_always then 'A' else 'O' end and t.tgenabled <> 'A'",
    },
    Check {
        name: "foreign-key",
        severity: Severity::Info,
        why: "visits of a partner that is not there would be let in",
        sql: "
  select 'public.store_visits.partner_id has no foreign key to public.partners' as what, null as sql,
         'run deploy/supabase/fix_foreign_key.sql, which takes no long lock and reports orphans' as manual
   where not exists (select from pg_constraint c where c.contype = 'f' and c.confrelid = 'public.partners'::regclass
                        and c.conrelid = 'public.store_visits'::regclass)",
    },
];

/// Whether anything can be seen at all.
pub const ACCESS: &[Check] = &[Check {
    name: "schema-usage",
    severity: Severity::Error,
    why: "without it no table can be named; the other checks wait for it",
    sql: "
  select format('%s may not use the schema public', current_user) as what,
         format('grant usage on schema public to %I;', current_user) as sql, null as manual
   where not has_schema_privilege('public', 'usage')",
}];

/// Who may do what. A table that is not there yet lacks no right.
pub const RIGHTS: &[Check] = &[
    Check {
        name: "grants",
        severity: Severity::Error,
        why: "the role of DATABASE_URL needs it for the agent's statements; the other checks wait for it",
        sql: "
  select format('%s lacks %s on public.%s', current_user, string_agg(w.right, ', '), w.relation) as what,
         format('grant %s on public.%I to %I;', string_agg(w.right, ', '), w.relation, current_user) as sql, null as manual
    from (values
      ('visit_distribution', 'select'), ('visit_distribution', 'update'), ('visit_distribution_progress', 'select'),
      ('visit_distribution_progress', 'update'), ('store_visits', 'select'), ('store_visits', 'insert'), ('visit_page_paths', 'select'),
      ('visit_user_agents', 'select'), ('visit_referrers', 'select'),
      ('visit_pacer_control', 'select'), ('visit_pacer_control', 'insert'), ('visit_pacer_agents', 'select'), ('visit_pacer_agents', 'insert'),
      ('visit_pacer_agents', 'update'), ('visit_pacer_agents', 'delete'), ('visit_pacer_canary', 'select'), ('visit_pacer_canary', 'update'),
      ('visit_pacer_migrations', 'select')) as w (relation, \"right\")
   where not case when w.right = 'delete' then has_table_privilege(to_regclass('public.' || w.relation), w.right)
                  else has_any_column_privilege(to_regclass('public.' || w.relation), w.right) end
   group by w.relation
  union all
  select format('%s may not call %s', current_user, p.oid::regprocedure), format('grant execute on function %s to %I;', p.oid::regprocedure, current_user), null
    from pg_proc p
   where p.pronamespace = 'public'::regnamespace
     and p.proname in ('visit_pacer_store', 'visit_pacer_may_store', 'visit_pacer_lock_partners', 'visit_pacer_initialise',
                       'visit_pacer_create_progress', 'visit_pacer_count_mismatches', 'visit_pacer_reconcile_row',
                       'visit_pacer_refresh_columns', 'visit_pacer_visit_columns', 'visit_pacer_utc', 'visit_pacer_partner',
                       'visit_pacer_partner_type')
     and not has_function_privilege(p.oid, 'execute')",
    },
    Check {
        name: "row-security",
        severity: Severity::Error,
        why: "with row level security on and no policy the role of DATABASE_URL sees no row, and can lock or write none",
        sql: "
  select format('row level security of public.%s lets %s do no %s', c.relname, current_user, string_agg(w.command, ', ' order by w.command)) as what,
         format(E'drop policy if exists %1$I on public.%2$I;\\ncreate policy %1$I on public.%2$I for all to %3$I using (%4$s) with check (%4$s);',
           case current_user when 'visit_pacer' then 'visit_pacer_agent' else 'visit_pacer_agent_' || current_user end, c.relname, current_user,
           case c.relname when 'store_visits' then 'distribution_id is not null' else 'true' end) as sql,
         null as manual
    from (values
      ('visit_distribution', 'select', 'r'), ('visit_distribution', 'update', 'w'), ('visit_distribution_progress', 'select', 'r'),
      ('visit_distribution_progress', 'update', 'w'), ('store_visits', 'select', 'r'), ('store_visits', 'insert', 'a'),
      ('visit_page_paths', 'select', 'r'), ('visit_user_agents', 'select', 'r'), ('visit_referrers', 'select', 'r'), ('visit_pacer_control', 'select', 'r'), ('visit_pacer_agents', 'select', 'r'),
      ('visit_pacer_agents', 'insert', 'a'), ('visit_pacer_agents', 'update', 'w'), ('visit_pacer_agents', 'delete', 'd'),
      ('visit_pacer_canary', 'select', 'r'), ('visit_pacer_canary', 'update', 'w'), ('visit_pacer_migrations', 'select', 'r')) as w (relation, command, code)
    join pg_class c on c.oid = to_regclass('public.' || w.relation)
   where row_security_active(c.oid)
     and not exists (select from pg_policy p
                      where p.polrelid = c.oid and p.polpermissive and p.polcmd::text in (w.code, '*')
                        and (p.polroles = '{0}' or exists (select from unnest(p.polroles) r where r <> 0 and pg_has_role(r, 'usage'))))
   group by c.relname",
    },
    Check {
        name: "service-role",
        severity: Severity::Error,
        why: "Realtime shows a row only to a key whose role may read it",
        sql: "
  select format('service_role may not read public.%s', w.relation) as what,
         format(E'grant usage on schema public to service_role;\\ngrant select on public.%I to service_role;', w.relation) as sql, null as manual
    from unnest(array['visit_distribution', 'visit_pacer_canary']) as w (relation)
   where exists (select from pg_roles where rolname = 'service_role')
     and not (has_schema_privilege('service_role', 'public', 'usage') and has_table_privilege('service_role', to_regclass('public.' || w.relation), 'select'))",
    },
    Check {
        name: "open-tables",
        severity: Severity::Info,
        why: "whoever has the public key can read or change it; closing it may break a page of yours, so it is left to you",
        sql: "
  select format('%s may use tables that have no row level security: %s', r.rolname,
           string_agg(format('public.%s (%s)', c.relname, w.rights), ', ' order by c.relname)) as what,
         null as sql, 'run deploy/supabase/fix_rls.sql' as manual
    from pg_class c cross join pg_roles r
    cross join lateral (select string_agg(u.right, ', ') as rights
                          from unnest(array['select', 'insert', 'update', 'delete']) as u (\"right\") where has_table_privilege(r.oid, c.oid, u.right)) w
   where c.relnamespace = 'public'::regnamespace and c.relname in ('partners', 'visit_distribution', 'store_visits')
     and r.rolname in ('anon', 'authenticated') and not c.relrowsecurity and w.rights is not null
   group by r.rolname",
    },
];

/// What Realtime is told.
pub const PUBLICATION: &[Check] = &[
    Check {
        name: "publication",
        severity: Severity::Error,
        why: "edits of visit_distribution reach the agent through it",
        sql: "
  select case when p.oid is null then 'there is no publication supabase_realtime' else 'visit_distribution is not in the publication supabase_realtime' end as what,
         case when p.oid is null then 'create publication supabase_realtime for table public.visit_distribution, public.visit_pacer_canary;'
              else 'alter publication supabase_realtime add table public.visit_distribution;' end as sql, null as manual
    from (select) one left join pg_publication p on p.pubname = 'supabase_realtime'
   where not exists (select from pg_publication_tables t where t.pubname = 'supabase_realtime' and t.schemaname = 'public' and t.tablename = 'visit_distribution')",
    },
    Check {
        name: "published-canary",
        severity: Severity::Warning,
        why: "by its events the agent notices a channel that is dead but looks alive",
        sql: "
  select 'visit_pacer_canary is not in the publication supabase_realtime' as what,
         'alter publication supabase_realtime add table public.visit_pacer_canary;' as sql, null as manual
    from pg_publication p
   where p.pubname = 'supabase_realtime'
     and not exists (select from pg_publication_tables t where t.pubname = p.pubname and t.schemaname = 'public' and t.tablename = 'visit_pacer_canary')",
    },
    Check {
        name: "published-visits",
        severity: Severity::Warning,
        why: "each visit becomes a Realtime event: it is billed, and over 100 a second everybody's events are thrown away",
        sql: "
  select case when p.puballtables then 'the publication supabase_realtime is FOR ALL TABLES' else 'store_visits is in the publication supabase_realtime' end as what,
         case when p.puballtables
           then E'drop publication supabase_realtime;\\ncreate publication supabase_realtime for table ' || (
             select string_agg(format('%I.%I', t.schemaname, t.tablename), ', ' order by t.tablename) from pg_publication_tables t
              where t.pubname = p.pubname and t.schemaname = 'public' and t.tablename <> 'store_visits'
                and (t.tablename = 'visit_pacer_canary'
                     or (t.tablename like 'visit\\_pacer\\_%'
                         or obj_description(format('public.%I', t.tablename)::regclass, 'pg_class') like 'visit-pacer:%') is not true)) || ';'
           else 'alter publication supabase_realtime drop table public.store_visits;' end as sql, null as manual
    from pg_publication p
   where p.pubname = 'supabase_realtime'
     and exists (select from pg_publication_tables t where t.pubname = p.pubname and t.schemaname = 'public' and t.tablename = 'store_visits')",
    },
    Check {
        name: "published-operations",
        severity: Severity::Error,
        why: "edits of that kind would be seen by the periodic sync alone",
        sql: "
  select 'the publication supabase_realtime leaves out insert, update or delete' as what,
         'alter publication supabase_realtime set (publish = ''insert, update, delete, truncate'');' as sql, null as manual
    from pg_publication p where p.pubname = 'supabase_realtime' and not (p.pubinsert and p.pubupdate and p.pubdelete)",
    },
    Check {
        name: "published-part",
        severity: Severity::Error,
        why: "an edit outside of the filter or the columns would never be told",
        sql: "
  select format('the publication supabase_realtime has a %s for %s', case when r.prqual is null then 'column list' else 'row filter' end, r.prrelid::regclass) as what,
         format(E'alter publication supabase_realtime drop table %s;\\nalter publication supabase_realtime add table %s;', q.name, q.name) as sql, null as manual
    from pg_publication p join pg_publication_rel r on r.prpubid = p.oid
    cross join lateral (select format('public.%I', c.relname) as name from pg_class c where c.oid = r.prrelid) q
   where p.pubname = 'supabase_realtime' and r.prrelid in (to_regclass('public.visit_distribution'), to_regclass('public.visit_pacer_canary'))
     and (r.prqual is not null or r.prattrs is not null)",
    },
];

/// Edits as broadcasts: all of what broadcast.sql made, or nothing.
pub const BROADCAST: &[Check] = &[
    Check {
        name: "broadcast-offer",
        severity: Severity::Info,
        why: "a broadcast comes within milliseconds and is kept for replay; postgres_changes polls, and loses edits in an outage",
        sql: "
  select 'edits are not broadcast, though this project can' as what, null as sql, 'run deploy/supabase/broadcast.sql' as manual
   where to_regclass('realtime.messages') is not null
     and exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace where n.nspname = 'realtime' and p.proname = 'send')
     and not exists (select from pg_trigger t where t.tgname like 'zzz\\_visit\\_pacer\\_broadcast%')
     and to_regproc('public.visit_pacer_broadcast_canary') is null",
    },
    Check {
        name: "broadcast-parts",
        severity: Severity::Warning,
        why: "not every edit is broadcast; the agent hears of the others by postgres_changes alone",
        sql: "
  with wanted (part, made, works) as (
    select format('the trigger %s', w.name), t.oid is not null, coalesce(t.tgenabled in ('O', 'A'), false)
      from unnest(array['zzz_visit_pacer_broadcast_new', 'zzz_visit_pacer_broadcast_edited']) as w (name)
      left join pg_trigger t on t.tgrelid = to_regclass('public.visit_distribution') and t.tgname = w.name
    union all
    select 'the function visit_pacer_broadcast_canary()', f.there, f.there
      from (select to_regproc('public.visit_pacer_broadcast_canary') is not null as there) f
    union all
    -- By names alone: our role may have no rights in the schema realtime.
    select 'the function realtime.send()', false, exists (select from pg_proc p join pg_namespace n on n.oid = p.pronamespace
                                                           where n.nspname = 'realtime' and p.proname = 'send')
  )
  select format('%s is %s', part, case when made then 'disabled' else 'missing' end) as what,
         case when made then format('alter table public.visit_distribution enable %s;', substr(part, 5)) end as sql,
         case when not made then 'run deploy/supabase/broadcast.sql again, or broadcast_remove.sql, which takes all of it away' end as manual
    from wanted where not works and exists (select from wanted where made)",
    },
    Check {
        name: "broadcast-grant",
        severity: Severity::Warning,
        why: "the agent sends a canary each minute to notice a broadcast channel that is dead but looks alive",
        sql: "
  select format('%s may not call %s', current_user, p.oid::regprocedure) as what,
         format('grant execute on function %s to %I;', p.oid::regprocedure, current_user) as sql, null as manual
    from pg_proc p
   where p.oid = to_regproc('public.visit_pacer_broadcast_canary') and not has_function_privilege(p.oid, 'execute')",
    },
];

/// The server and its limits.
pub const SERVER: &[Check] = &[
    Check {
        name: "standby",
        severity: Severity::Error,
        why: "nothing can be stored there",
        sql: "select 'the server is a read replica' as what, null as sql, 'put the primary into DATABASE_URL' as manual where pg_is_in_recovery()",
    },
    Check {
        name: "read-only",
        severity: Severity::Error,
        why: "nothing can be stored; a Free project turns read-only when its database is larger than 500 MB",
        sql: "
  select format('transactions are read-only; the database has %s', pg_size_pretty(pg_database_size(current_database()))) as what, null as sql,
         'make room (visit-pacer purge --distribution ID) or take a larger plan; see the finding about settings, where there is one' as manual
   where current_setting('transaction_read_only')::boolean and not pg_is_in_recovery()",
    },
    Check {
        name: "settings",
        severity: Severity::Error,
        why: "the agent and the SQL functions need writable transactions at READ COMMITTED, and triggers that fire",
        sql: "
  select format('%s is set for %s', setting, target) as what, format('alter %s reset %s;', target, name) as sql, 'start the agent again' as manual
    from (select setting, split_part(setting, '=', 1) as name, split_part(setting, '=', 2) as value,
                 case when s.setrole = 0 then format('database %I', d.datname) when s.setdatabase = 0 then format('role %I', r.rolname)
                      else format('role %I in database %I', r.rolname, d.datname) end as target
            from pg_db_role_setting s cross join unnest(s.setconfig) setting
            left join pg_database d on d.oid = s.setdatabase left join pg_roles r on r.oid = s.setrole
           where (s.setdatabase = 0 or d.datname = current_database()) and (s.setrole = 0 or r.rolname = current_user)) found
   where (name = 'default_transaction_read_only' and value in ('on', 'true', '1', 'yes'))
      or (name = 'default_transaction_isolation' and value <> 'read committed')
      or (name = 'session_replication_role' and value <> 'origin')",
    },
    Check {
        name: "wal-level",
        severity: Severity::Error,
        why: "Realtime reads changes from the WAL, which has them only at the level 'logical'",
        sql: "
  select format('wal_level is %s', current_setting('wal_level')) as what, 'alter system set wal_level = logical;' as sql, 'restart the server' as manual
   where current_setting('wal_level') <> 'logical'",
    },
    Check {
        name: "replication-slots",
        severity: Severity::Warning,
        why: "Realtime needs one of its own, and can follow nothing without it",
        sql: "
  select format('all %s replication slots are taken', current_setting('max_replication_slots')) as what, null as sql,
         'drop slots that nobody uses (select slot_name, active from pg_replication_slots), or raise max_replication_slots' as manual
    from pg_replication_slots having count(*) >= current_setting('max_replication_slots')::integer and not bool_or(slot_name ~ 'realtime')",
    },
    Check {
        name: "connections",
        severity: Severity::Warning,
        why: "the agent holds three connections, and two more for a while: to read a large table, and for the dashboard; without a free one it waits",
        sql: "
  select format('%s of %s connections are in use', used, allowed) as what, null as sql,
         'end idle ones, lower the pools of your applications, or take a larger compute size' as manual
    from (select count(*) filter (where a.backend_type = 'client backend') as used,
                 current_setting('max_connections')::integer - current_setting('superuser_reserved_connections')::integer as allowed
            from pg_stat_activity a) counted
   where allowed - used < 5
  union all
  select format('%s may open %s connections', rolname, rolconnlimit), format('alter role %I connection limit 10;', rolname), null
    from pg_roles where rolname = current_user and not rolsuper and rolconnlimit between 0 and 5",
    },
    Check {
        name: "disk",
        severity: Severity::Info,
        why: "a Free project turns read-only at 500 MB; visit-pacer plan --id says when a row gets there",
        sql: "
  select format('the database has %s', pg_size_pretty(bytes)) as what, null as sql,
         'purge old visits (select * from purge_old_visits(interval ''30 days'')), or take a larger plan' as manual
    from pg_database_size(current_database()) bytes where bytes > 400000000",
    },
];

/// The rows.
pub const ROWS: &[Check] = &[
    Check {
        name: "control",
        severity: Severity::Warning,
        why: "it has the budget, the default catch_up and the stop switch; the status view shows nothing without it",
        sql: "
  select 'visit_pacer_control has no row' as what, 'insert into public.visit_pacer_control default values;' as sql, null as manual
   where not exists (select from public.visit_pacer_control)",
    },
    Check {
        name: "paused",
        severity: Severity::Error,
        why: "nothing is stored while it is set",
        sql: "
  select 'everything is paused, by visit_pacer_control' as what, 'update public.visit_pacer_control set paused = false;' as sql, null as manual
    from public.visit_pacer_control where paused",
    },
    Check {
        name: "canary",
        severity: Severity::Warning,
        why: "by its events the agent notices a channel that is dead but looks alive",
        sql: "
  select 'visit_pacer_canary has no row' as what, 'insert into public.visit_pacer_canary (id) values (1);' as sql, null as manual
   where not exists (select from public.visit_pacer_canary)",
    },
    Check {
        name: "page-paths",
        severity: Severity::Warning,
        why: "page paths of visits are drawn from it",
        sql: "
  select 'visit_page_paths has no row' as what, 'insert into public.visit_page_paths (path, weight) values (''/'', 1);' as sql, null as manual
   where not exists (select from public.visit_page_paths)",
    },
    Check {
        name: "user-agents",
        severity: Severity::Info,
        why: "user_agent and device_type of visits are drawn from it, and are null without",
        sql: "
  select 'visit_user_agents has no row' as what, null as sql, 'insert browsers: (user_agent, device_type, weight)' as manual
   where not exists (select from public.visit_user_agents)",
    },
    Check {
        name: "unanchored-rows",
        severity: Severity::Warning,
        why: "no trigger has seen them; the agent's next sync anchors them, the SQL functions as well",
        sql: "
  select format('%s rows of visit_distribution have no anchor or no progress', count(*)) as what, 'select public.visit_pacer_initialise();' as sql, null as manual
    from public.visit_distribution v
   where v.anchor_at is null or not exists (select from public.visit_distribution_progress p where p.distribution_id = v.id)
  having count(*) > 0",
    },
];
