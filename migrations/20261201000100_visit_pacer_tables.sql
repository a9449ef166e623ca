-- visit-pacer 1 of 7: tables and columns, and the functions that the migrations themselves use.
--
-- Every file of this folder is additive and idempotent: it creates what is missing and never drops or rewrites a user's data.
-- Every file runs in one transaction, needs no superuser, and ends by recording its own version.
-- A comment that begins with "visit-pacer:" marks an object or column as part of visit-pacer: uninstall.sql removes those.

set local client_min_messages = warning;  -- no "already exists, skipping" for every object
set local lock_timeout = '800ms';  -- an ALTER TABLE that waits for a lock blocks all other sessions

create table if not exists public.visit_pacer_migrations (
  version text primary key,
  applied_at timestamptz not null default clock_timestamp()
);
comment on table public.visit_pacer_migrations is 'visit-pacer: the applied migrations';

create table if not exists public.visit_pacer_replaced (
  name text not null,
  definition text not null,
  replaced_at timestamptz not null default clock_timestamp()
);
comment on table public.visit_pacer_replaced is
  'visit-pacer: objects and settings that a migration replaced, and the SQL that restores them; uninstall.sql runs it, oldest first';

-- Rights as the statements that give them, and no others: not those that a new object gets by itself.
create or replace function public.visit_pacer_grant_statements(object_name text, acl aclitem[]) returns text
language sql stable set search_path = '' as $$
  select coalesce(pg_catalog.string_agg(pg_catalog.format(' %s on %s %s;', r.what, object_name, r.whose), '' order by r.what desc), '')
    from (select 'revoke all' as what, 'from ' || everybody as whose
            from pg_catalog.unnest(array(select pg_catalog.quote_ident(rolname) from pg_catalog.pg_roles
                                          where rolname in ('anon', 'authenticated', 'service_role')) || 'public'::text) everybody
           where acl is not null
          union all
          select 'grant ' || lower(a.privilege_type),
                 'to ' || case a.grantee when 0 then 'public' else a.grantee::pg_catalog.regrole::text end
                 || case when a.is_grantable then ' with grant option' else '' end
            from pg_catalog.aclexplode(acl) a) r
$$;
comment on function public.visit_pacer_grant_statements is 'visit-pacer: used by migrations';

-- Makes room for a function or view of ours: one of that name that is the user's own is kept as text in
-- visit_pacer_replaced, named in a NOTICE and dropped, without CASCADE; so is a function of ours with another signature.
-- What is ours stays, to be replaced in place: views of the user's may stand on it by now.
create or replace function public.visit_pacer_replace_object(kind text, object_name text, arguments text default '', result text default '')
returns void language plpgsql set search_path = '' as $$
declare
  found_one record;
  ours boolean;
begin
  if kind = 'view' then
    for found_one in
      select c.oid, case c.relkind when 'm' then 'materialized view' else 'view' end as kind, c.reloptions as options,
             pg_catalog.obj_description(c.oid, 'pg_class') as note, c.relacl as acl, 'table ' || c.oid::regclass as name
        from pg_catalog.pg_class c
       where c.relnamespace = 'public'::regnamespace and c.relname = object_name and c.relkind in ('v', 'm')
    loop
      continue when found_one.note like 'visit-pacer:%';
      insert into public.visit_pacer_replaced (name, definition)
      values (object_name, pg_catalog.format('create %s public.%I%s as %s', found_one.kind, object_name,
                ' with (' || pg_catalog.array_to_string(found_one.options, ', ') || ')', pg_catalog.pg_get_viewdef(found_one.oid))
              || public.visit_pacer_grant_statements(found_one.name, found_one.acl));
      raise notice 'visit-pacer: the view public.% was there; its text is kept in visit_pacer_replaced', object_name;
      execute pg_catalog.format('drop %s public.%I', found_one.kind, object_name);
    end loop;
    return;
  end if;
  for found_one in
    select p.oid, p.oid::regprocedure as signature, pg_catalog.obj_description(p.oid, 'pg_proc') as note, p.prokind, p.proacl as acl,
           pg_catalog.pg_get_function_identity_arguments(p.oid) as arguments, pg_catalog.pg_get_function_result(p.oid) as result
      from pg_catalog.pg_proc p
     where p.pronamespace = 'public'::regnamespace and p.proname = object_name
  loop
    ours := coalesce(found_one.note like 'visit-pacer:%', false);
    if not ours then
      insert into public.visit_pacer_replaced (name, definition)
      values (object_name, case when found_one.prokind = 'a' then found_one.signature::text
                else pg_catalog.pg_get_functiondef(found_one.oid) || ';'
                     || public.visit_pacer_grant_statements('routine ' || found_one.signature, found_one.acl) end);
      raise notice 'visit-pacer: the function % was there; its text is kept in visit_pacer_replaced', found_one.signature;
    end if;
    if not ours or found_one.arguments is distinct from arguments or found_one.result is distinct from result then
      execute pg_catalog.format('drop %s %s', case found_one.prokind when 'p' then 'procedure' when 'a' then 'aggregate' else 'function' end, found_one.signature);
    end if;
  end loop;
end $$;
comment on function public.visit_pacer_replace_object is 'visit-pacer: used by migrations';

-- The only place for grants. Tables, views and functions of visit-pacer: nothing for public, anon and authenticated; SELECT or
-- EXECUTE for service_role; row level security on tables. `new_tables` are user tables that a migration has just created.
-- Every file ends with it, so that no object is ever open to the public, even if a later file fails.
create or replace function public.visit_pacer_revoke_public(new_tables text[] default '{}') returns void
language plpgsql set search_path = '' as $$
declare
  object record;
  r text;
begin
  for object in
    select 'function ' || p.oid::regprocedure as name, 'execute' as privilege, false as needs_rls
      from pg_catalog.pg_proc p
     where p.pronamespace = 'public'::regnamespace and pg_catalog.obj_description(p.oid, 'pg_proc') like 'visit-pacer:%'
    union all
    select 'table ' || c.oid::regclass, 'select', c.relkind <> 'v' and not c.relrowsecurity
      from pg_catalog.pg_class c
     where c.relnamespace = 'public'::regnamespace and c.relkind in ('r', 'p', 'v')
       and (pg_catalog.obj_description(c.oid, 'pg_class') like 'visit-pacer:%' or c.relname = any (new_tables))
  loop
    if object.needs_rls then
      execute pg_catalog.format('alter %s enable row level security', object.name);
    end if;
    execute pg_catalog.format('revoke all on %s from public', object.name);
    foreach r in array array['anon', 'authenticated'] loop
      if exists (select from pg_catalog.pg_roles where rolname = r) then
        execute pg_catalog.format('revoke all on %s from %I', object.name, r);
      end if;
    end loop;
    if exists (select from pg_catalog.pg_roles where rolname = 'service_role') then
      execute pg_catalog.format('grant %s on %s to service_role', object.privilege, object.name);
    end if;
  end loop;
end $$;
comment on function public.visit_pacer_revoke_public is 'visit-pacer: used by migrations';

-- The user's three tables, created only if absent.

select set_config('visit_pacer.existing_tables', coalesce(string_agg(relname::text, ','), ''), true)
  from pg_class where relnamespace = 'public'::regnamespace and relname in ('partners', 'visit_distribution', 'store_visits');

create table if not exists public.partners (
  id uuid primary key default gen_random_uuid(),
  name text,
  created_at timestamptz not null default now()
);

-- The type of partners.id, which all columns of a partner have.
create or replace function public.visit_pacer_partner_type() returns text
language sql stable set search_path = '' as $$
  select pg_catalog.format_type(a.atttypid, null) from pg_catalog.pg_attribute a
   where a.attrelid = 'public.partners'::pg_catalog.regclass and a.attname = 'id'
$$;
comment on function public.visit_pacer_partner_type is 'visit-pacer: the type of partners.id';

-- A partner's id of its text: the program treats ids of partners as opaque.
create or replace function public.visit_pacer_partner(partner text) returns public.partners.id%type
language plpgsql stable strict set search_path = '' as $$
begin
  return partner;  -- by the input function of the type
end $$;
comment on function public.visit_pacer_partner is 'visit-pacer: the id of a partner, of its text';

do $$
begin
  execute format($sql$
    create table if not exists public.visit_distribution (
      id uuid primary key default gen_random_uuid(),
      partner_id %s not null references public.partners (id),
      total_visits bigint,
      time_period text,
      visits_per_unit numeric,
      is_active boolean default true,
      start_time timestamptz default now(),
      end_time timestamptz,
      total_distributed numeric default 0,
      last_distribution timestamptz,
      created_at timestamptz default now(),
      updated_at timestamptz default now()
    )
  $sql$, public.visit_pacer_partner_type());
  execute format($sql$
    create table if not exists public.store_visits (
      id uuid primary key default gen_random_uuid(),
      partner_id %s not null references public.partners (id),
      visited_at timestamptz not null default now(),
      session_duration integer,
      page_path text,
      created_at timestamptz default clock_timestamp()
    )
  $sql$, public.visit_pacer_partner_type());
end $$;

-- Columns that the user's tables lack. None has a volatile default, so no row is rewritten.
do $$
declare
  lacking record;
begin
  for lacking in
    select l.* from (values
      ('visit_distribution', 'name', 'text', 'yours to set: shown instead of the id'),
      ('visit_distribution', 'is_active', 'boolean default true', 'false pauses the distribution'),
      ('visit_distribution', 'start_time', 'timestamptz default now()', 'nothing is due before; null: it never starts'),
      ('visit_distribution', 'end_time', 'timestamptz', 'nothing falls due after; null: no end'),
      ('visit_distribution', 'total_distributed', 'numeric default 0', 'as of the last write-back; visit_distribution_status is exact'),
      ('visit_distribution', 'last_distribution', 'timestamptz', 'time of the last write-back'),
      ('visit_distribution', 'created_at', 'timestamptz default now()', 'when the row was inserted'),
      ('visit_distribution', 'updated_at', 'timestamptz default now()', 'when the rate was last edited'),
      ('visit_distribution', 'catch_up', 'numeric', 'set by the user: a backlog drains at this multiple of the rate; null: as in visit_pacer_control'),
      ('visit_distribution', 'config_version', 'bigint', 'set by the trigger: changes with every edit of the rate'),
      ('visit_distribution', 'anchor_units', 'numeric', 'set by the trigger: the curve at anchor_at, in 1/86,400,000,000 visit'),
      ('visit_distribution', 'anchor_at', 'timestamptz', 'set by the trigger: where the curve of the current rate begins'),
      ('visit_distribution', 'changed_xid', 'xid8', 'set by the trigger: the transaction of the last edit of the rate'),
      ('store_visits', 'session_duration', 'integer', 'seconds'),
      ('store_visits', 'page_path', 'text', 'the page visited'),
      ('store_visits', 'user_agent', 'text', 'the browser'),
      ('store_visits', 'referrer', 'text', 'where the visit came from; null: direct'),
      ('store_visits', 'device_type', 'text', 'desktop, mobile or tablet'),
      ('store_visits', 'distribution_id', 'uuid', 'the visit_distribution row that generated this visit (synthetic); null for an '
         'organic visit. No foreign key, so that visits outlive their distribution'),
      ('store_visits', 'visit_number', 'bigint', 'counts the visits of a distribution; never reused'),
      ('store_visits', 'created_at', 'timestamptz', 'when the visit was stored')
    ) as l (in_table, name, definition, meaning)
    where not exists (select from pg_attribute a
                       where a.attrelid = format('public.%I', l.in_table)::regclass and a.attname = l.name and not a.attisdropped)
  loop
    execute format('alter table public.%I add column %I %s', lacking.in_table, lacking.name, lacking.definition);
    execute format('comment on column public.%I.%I is %L', lacking.in_table, lacking.name, 'visit-pacer: ' || lacking.meaning);
  end loop;
end $$;

-- created_at is the time of the insert, not of the start of the batch's transaction. Set separately: an ADD COLUMN with a volatile
-- default rewrites the table.
do $$
declare
  created_at record;
begin
  select a.attnum, pg_get_expr(d.adbin, d.adrelid) as old_default, col_description(a.attrelid, a.attnum) like 'visit-pacer:%' as is_ours
    into created_at
    from pg_attribute a left join pg_attrdef d on d.adrelid = a.attrelid and d.adnum = a.attnum
   where a.attrelid = 'public.store_visits'::regclass and a.attname = 'created_at'
     and a.atttypid in ('timestamptz'::regtype, 'timestamp'::regtype) and a.attidentity = '' and a.attgenerated = '';
  if found and created_at.old_default is distinct from 'clock_timestamp()' then
    if created_at.is_ours is not true then
      insert into public.visit_pacer_replaced (name, definition)
      values ('store_visits.created_at', 'alter table public.store_visits alter column created_at '
                || coalesce('set default ' || created_at.old_default, 'drop default'));
    end if;
    alter table public.store_visits alter column created_at set default clock_timestamp();
  end if;
end $$;

-- For incremental reads. A reader that asks for changed_xid >= the oldest running transaction of its last read misses no edit,
-- however late it commits.
create index if not exists visit_distribution_changed on public.visit_distribution (changed_xid);

-- No foreign key to visit_distribution: progress survives the delete of its distribution.
create table if not exists public.visit_distribution_progress (
  distribution_id uuid primary key,
  distributed bigint not null default 0,       -- stored + purged + baseline
  last_number bigint not null default 0,       -- the highest visit_number assigned; never reused
  baseline bigint not null default 0,          -- counted before the first migration, not stored by visit-pacer
  purged bigint not null default 0,            -- stored, then removed by retention; never issued again
  last_visited_at timestamptz,
  bucket_units numeric,                        -- level of the token bucket at bucket_at, in curve units; null: full
  bucket_at timestamptz,
  missing bigint not null default 0,           -- as of the last reconciliation
  backfill boolean not null default false,     -- set by visit_pacer_backfill(), read and cleared by the trigger
  decreased_xid xid8,                          -- the transaction that last decreased distributed
  reason_code text,                            -- why it makes no progress, as far as an agent or a function found out
  reason_detail jsonb,                         -- insert_failed: the fields of the server's error
  reason_at timestamptz,
  check (distributed >= 0 and last_number >= 0 and baseline >= 0 and purged >= 0)
) with (fillfactor = 70);                      -- every batch updates it: leave room for HOT
comment on table public.visit_distribution_progress is 'visit-pacer: what is stored of each distribution';
create index if not exists visit_distribution_progress_decreased on public.visit_distribution_progress (decreased_xid)
  where decreased_xid is not null;

-- Distributions deleted within the last hour. An agent whose last read is older reads every row. A null id: TRUNCATE.
create table if not exists public.visit_pacer_deletions (
  distribution_id uuid,
  xid xid8 not null default pg_current_xact_id(),
  deleted_at timestamptz not null default clock_timestamp()
);
comment on table public.visit_pacer_deletions is 'visit-pacer: distributions that were deleted within the last hour';
create index if not exists visit_pacer_deletions_xid on public.visit_pacer_deletions (xid);

-- Read by `visit-pacer report` and the dashboard, which draw the curve of the past from it. Pacing never reads it.
create table if not exists public.visit_pacer_edits (
  distribution_id uuid not null,
  config_version bigint not null,
  edited_at timestamptz not null,
  edited_by text,
  partner_id text,
  is_active boolean,
  total_visits numeric,
  visits_per_unit numeric,
  time_period text,
  start_time timestamptz,
  end_time timestamptz,
  anchor_units numeric,
  anchor_at timestamptz,
  primary key (distribution_id, config_version)
);
comment on table public.visit_pacer_edits is 'visit-pacer: the last edits of each distribution (about 200); deleted with the distribution';

create table if not exists public.visit_page_paths (
  path text not null,
  weight numeric not null check (weight > 0 and weight < 1000000000),
  partner_id text,                             -- null: for every partner that has no paths of its own; as partners.id
  unique nulls not distinct (path, partner_id)
);
do $$
begin
  if (select a.atttypid from pg_attribute a where a.attrelid = 'public.visit_page_paths'::regclass and a.attname = 'partner_id')
     <> public.visit_pacer_partner_type()::regtype then
    execute format('alter table public.visit_page_paths alter column partner_id type %1$s using partner_id::%1$s', public.visit_pacer_partner_type());
  end if;
end $$;
comment on table public.visit_page_paths is 'visit-pacer: page paths that visits are drawn from; yours to edit';

create table if not exists public.visit_user_agents (
  user_agent text not null,
  device_type text not null,
  weight numeric not null check (weight > 0 and weight < 1000000000),
  unique (user_agent, device_type)
);
comment on table public.visit_user_agents is 'visit-pacer: browsers, with their devices, that visits are drawn from; yours to edit';

create table if not exists public.visit_referrers (
  referrer text,                               -- null: a direct visit
  desktop_weight numeric not null check (desktop_weight >= 0 and desktop_weight < 1000000000),
  handheld_weight numeric not null check (handheld_weight >= 0 and handheld_weight < 1000000000),  -- every other device
  unique nulls not distinct (referrer)
);
comment on table public.visit_referrers is 'visit-pacer: referrers that visits are drawn from; yours to edit';

create table if not exists public.visit_pacer_control (
  id boolean primary key default true check (id),
  paused boolean not null default false,
  catch_up numeric not null default 2 check (catch_up >= 1 and catch_up <= 1000 and scale(trim_scale(catch_up)) <= 3),
  give_up_after interval not null default '24 hours' check (give_up_after >= interval '0'),
  echo_budget numeric not null default 0.2 check (echo_budget > 0 and echo_budget <= 100)
);
comment on table public.visit_pacer_control is 'visit-pacer: one row of settings for all agents and SQL functions';
insert into public.visit_pacer_control default values on conflict do nothing;

create table if not exists public.visit_pacer_agents (
  id uuid primary key,                         -- new at each start of a process
  name text not null,
  started_at timestamptz not null default clock_timestamp(),
  last_heartbeat_at timestamptz not null default clock_timestamp(),
  version text,
  realtime text,                               -- live, or why not
  rows_known bigint not null default 0,
  rows_owned bigint not null default 0,        -- those of them that this agent stores
  serving boolean not null default false       -- the agent has read the rows, and its batches succeed
) with (fillfactor = 50);
comment on table public.visit_pacer_agents is 'visit-pacer: one row per agent, updated by its heartbeat';

-- The agent updates this row and waits for the Realtime event, to verify that events arrive.
create table if not exists public.visit_pacer_canary (
  id integer primary key default 1 check (id = 1),
  touched_at timestamptz not null default clock_timestamp(),
  touched_by uuid
);
comment on table public.visit_pacer_canary is 'visit-pacer: published to Realtime to verify that events arrive';
insert into public.visit_pacer_canary (id) values (1) on conflict do nothing;

-- The default catalogue: thirty pages of a shop with a blog, weights by rank as in Zipf's law with exponent 1.07; browsers and
-- sites by their global usage as of November 2026. A start for the user to edit, so it is inserted only the first time.
insert into public.visit_page_paths (path, weight)
select catalogue.path, catalogue.weight
  from (values
    ('/', 1000.0),
    ('/products', 476.3),
    ('/search', 308.7),
    ('/products/new', 226.9),
    ('/sale', 178.7),
    ('/blog', 147.0),
    ('/cart', 124.7),
    ('/categories/home', 108.1),
    ('/about', 95.3),
    ('/products/linen-shirt', 85.1),
    ('/categories/kitchen', 76.9),
    ('/contact', 70.0),
    ('/checkout', 64.3),
    ('/products/oak-table', 59.4),
    ('/blog/how-to-choose-a-mattress', 55.2),
    ('/account', 51.5),
    ('/products/wool-blanket', 48.2),
    ('/faq', 45.4),
    ('/shipping', 42.8),
    ('/categories/garden', 40.5),
    ('/blog/ten-small-kitchens', 38.5),
    ('/products/desk-lamp', 36.6),
    ('/pricing', 34.9),
    ('/returns', 33.4),
    ('/products/ceramic-mug', 31.9),
    ('/stores', 30.6),
    ('/blog/caring-for-wood', 29.4),
    ('/wishlist', 28.3),
    ('/newsletter', 27.2),
    ('/careers', 26.3)
  ) as catalogue (path, weight)
 where not exists (select from public.visit_pacer_migrations m where m.version = '20261201000100')
on conflict do nothing;

insert into public.visit_user_agents (weight, device_type, user_agent)
select catalogue.*
  from (values
    (106, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/157.0.0.0 Safari/537.36'),
    (48, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36'),
    (20, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/154.0.0.0 Safari/537.36'),
    (12, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/146.0.0.0 Safari/537.36'),
    (4, 'desktop', 'Mozilla/5.0 (Windows NT 6.1; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/109.0.0.0 Safari/537.36'),
    (36, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/157.0.0.0 Safari/537.36'),
    (16, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36'),
    (9, 'desktop', 'Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/157.0.0.0 Safari/537.36'),
    (5, 'desktop', 'Mozilla/5.0 (X11; CrOS x86_64 14541.0.0) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36'),
    (38, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36 Edg/156.0.0.0'),
    (14, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/155.0.0.0 Safari/537.36 Edg/155.0.0.0'),
    (3, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Safari/537.36 Edg/156.0.0.0'),
    (6, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/152.0.0.0 Safari/537.36 OPR/136.0.0.0'),
    (3, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/151.0.0.0 Safari/537.36 OPR/135.0.0.0'),
    (12, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:160.0) Gecko/20100101 Firefox/160.0'),
    (7, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:159.0) Gecko/20100101 Firefox/159.0'),
    (3, 'desktop', 'Mozilla/5.0 (Windows NT 10.0; Win64; x64; rv:140.0) Gecko/20100101 Firefox/140.0'),
    (4, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10.15; rv:160.0) Gecko/20100101 Firefox/160.0'),
    (4, 'desktop', 'Mozilla/5.0 (X11; Linux x86_64; rv:160.0) Gecko/20100101 Firefox/160.0'),
    (9, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/27.0 Safari/605.1.15'),
    (17, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.6 Safari/605.1.15'),
    (4, 'desktop', 'Mozilla/5.0 (Macintosh; Intel Mac OS X 10_15_7) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.6 Safari/605.1.15'),
    (239, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/157.0.0.0 Mobile Safari/537.36'),
    (75, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Mobile Safari/537.36'),
    (28, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/154.0.0.0 Mobile Safari/537.36'),
    (14, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/146.0.0.0 Mobile Safari/537.36'),
    (30, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) SamsungBrowser/30.0 Chrome/143.0.0.0 Mobile Safari/537.36'),
    (4, 'mobile', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/156.0.0.0 Mobile Safari/537.36 EdgA/156.0.0.0'),
    (5, 'mobile', 'Mozilla/5.0 (Android 16; Mobile; rv:160.0) Gecko/160.0 Firefox/160.0'),
    (46, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/27.0 Mobile/15E148 Safari/604.1'),
    (44, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.6.2 Mobile/15E148 Safari/604.1'),
    (34, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.6.1 Mobile/15E148 Safari/604.1'),
    (14, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.5.2 Mobile/15E148 Safari/604.1'),
    (12, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/18.7.5 Mobile/15E148 Safari/604.1'),
    (6, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 17_6 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/17.6 Mobile/15E148 Safari/604.1'),
    (20, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 26_6_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/154.0.8037.55 Mobile/15E148 Safari/604.1'),
    (8, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 27_0_0 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/154.0.8037.55 Mobile/15E148 Safari/604.1'),
    (16, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 26_6_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) GSA/439.4.980558000 Mobile/15E148 Safari/604.1'),
    (3, 'mobile', 'Mozilla/5.0 (iPhone; CPU iPhone OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) FxiOS/156.1 Mobile/15E148 Safari/604.1'),
    (8, 'tablet', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/157.0.0.0 Safari/537.36'),
    (4, 'tablet', 'Mozilla/5.0 (Linux; Android 10; K) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/154.0.0.0 Safari/537.36'),
    (6, 'tablet', 'Mozilla/5.0 (iPad; CPU OS 18_7 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) Version/26.6 Mobile/15E148 Safari/604.1'),
    (3, 'tablet', 'Mozilla/5.0 (iPad; CPU OS 26_6_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) CriOS/154.0.8037.55 Mobile/15E148 Safari/604.1'),
    (1, 'tablet', 'Mozilla/5.0 (iPad; CPU OS 26_6_2 like Mac OS X) AppleWebKit/605.1.15 (KHTML, like Gecko) GSA/439.4.980558000 Mobile/15E148 Safari/604.1')
  ) as catalogue (weight, device_type, user_agent)
 where not exists (select from public.visit_pacer_migrations m where m.version = '20261201000100')
on conflict do nothing;

insert into public.visit_referrers (desktop_weight, handheld_weight, referrer)
select catalogue.*
  from (values
    (420, 430, null),
    (370, 320, 'https://www.google.com/'),
    (52, 9, 'https://www.bing.com/'),
    (16, 8, 'https://duckduckgo.com/'),
    (9, 6, 'https://search.yahoo.com/'),
    (4, 2, 'https://www.ecosia.org/'),
    (24, 14, 'https://chatgpt.com/'),
    (5, 2, 'https://www.perplexity.ai/'),
    (18, 0, 'https://www.facebook.com/'),
    (10, 0, 'https://l.facebook.com/'),
    (0, 38, 'https://m.facebook.com/'),
    (0, 24, 'https://lm.facebook.com/'),
    (6, 66, 'https://l.instagram.com/'),
    (2, 20, 'https://www.tiktok.com/'),
    (10, 20, 'https://t.co/'),
    (16, 14, 'https://www.youtube.com/'),
    (18, 10, 'https://www.reddit.com/'),
    (14, 5, 'https://www.linkedin.com/'),
    (6, 12, 'https://www.pinterest.com/')
  ) as catalogue (desktop_weight, handheld_weight, referrer)
 where not exists (select from public.visit_pacer_migrations m where m.version = '20261201000100')
on conflict do nothing;

select public.visit_pacer_revoke_public(array(
  select t from unnest(array['partners', 'visit_distribution', 'store_visits']) t
   where t <> all (string_to_array(current_setting('visit_pacer.existing_tables'), ','))));

insert into public.visit_pacer_migrations (version) values ('20261201000100') on conflict do nothing;
