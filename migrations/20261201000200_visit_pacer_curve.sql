-- visit-pacer 2 of 7: the curve, and the triggers through which edits of visit_distribution take effect.

set local lock_timeout = '800ms';  -- an ALTER TABLE that waits for a lock blocks all other sessions

-- The user's times. One without a zone is UTC, whatever the time zone of the session.
create or replace function public.visit_pacer_utc(at timestamptz) returns timestamptz language sql immutable parallel safe as $$ select at $$;
create or replace function public.visit_pacer_utc(at timestamp) returns timestamptz language sql immutable parallel safe as $$ select at at time zone 'UTC' $$;
create or replace function public.visit_pacer_utc(at date) returns timestamptz language sql immutable parallel safe as $$ select at::timestamp at time zone 'UTC' $$;
comment on function public.visit_pacer_utc(date) is 'visit-pacer: a day of the user''s, from its begin';
comment on function public.visit_pacer_utc(timestamptz) is 'visit-pacer: a time of the user''s';
comment on function public.visit_pacer_utc(timestamp) is 'visit-pacer: a time of the user''s that has no zone';

-- Whole microseconds since the Unix epoch, exact (extract() gives a numeric since PostgreSQL 14). Stable, as extract() and format()
-- are: a function that claims to be immutable and is made of these is not inlined, which costs a status of 10,000 rows half a second.
create or replace function public.visit_pacer_micros(at timestamptz) returns numeric
language sql stable strict parallel safe as $$ select extract(epoch from at) * 1000000 $$;
comment on function public.visit_pacer_micros is 'visit-pacer: microseconds since the Unix epoch';

create or replace function public.visit_pacer_unit_seconds(time_period text) returns numeric
language sql stable parallel safe as $$
  select case time_period when 'second' then 1.0 when 'minute' then 60.0 when 'hour' then 3600.0 when 'day' then 86400.0 end
$$;
comment on function public.visit_pacer_unit_seconds is 'visit-pacer: length of a time_period; null for an unknown one';

-- Why a distribution makes no progress: a code, the column at fault if there is one, what was found, and what to do. A sentence is
-- made of it only where it is shown.
do $$
begin
  if to_regtype('public.visit_pacer_reason') is null then
    create type public.visit_pacer_reason as (code text, column_name text, message text, hint text);
    comment on type public.visit_pacer_reason is 'visit-pacer: why a distribution makes no progress';
  end if;
end $$;

create or replace function public.visit_pacer_reason_text(reason public.visit_pacer_reason) returns text
language sql stable parallel safe as $$ select reason.message || '; ' || reason.hint $$;
comment on function public.visit_pacer_reason_text is 'visit-pacer: a reason as a sentence';

create or replace function public.visit_pacer_invalid_value(column_name text, message text, hint text) returns public.visit_pacer_reason
language sql stable parallel safe as $$ select row('invalid_value', column_name, message, hint)::public.visit_pacer_reason $$;
comment on function public.visit_pacer_invalid_value is 'visit-pacer: the reason of an invalid value';

-- Why a value is invalid, or null. Each rule is one line; src/domain/distribution.rs has the same rules, and a test compares the two.
create or replace function public.visit_pacer_invalid_rate(visits_per_unit numeric, time_period text) returns public.visit_pacer_reason
language sql stable parallel safe as $$
  select case
    when public.visit_pacer_unit_seconds(time_period) is null then public.visit_pacer_invalid_value('time_period',
      format('time_period is %s', coalesce(quote_literal(time_period), 'null')), 'use ''second'', ''minute'', ''hour'' or ''day''')
    when visits_per_unit is null or visits_per_unit = 'NaN' or visits_per_unit in ('Infinity', '-Infinity') or visits_per_unit < 0
      then public.visit_pacer_invalid_value('visits_per_unit', format('visits_per_unit is %s', coalesce(visits_per_unit::text, 'null')),
        'use a number of visits, 0 or more')
    when scale(trim_scale(visits_per_unit)) > 9
      then public.visit_pacer_invalid_value('visits_per_unit', format('visits_per_unit is %s', visits_per_unit), 'use at most 9 decimals')
    when visits_per_unit > 1000000 * public.visit_pacer_unit_seconds(time_period)
      then public.visit_pacer_invalid_value('visits_per_unit', format('visits_per_unit is %s a %s', visits_per_unit, time_period),
        'use at most 1000000 visits a second')
  end
$$;
create or replace function public.visit_pacer_invalid_total(total_visits numeric) returns public.visit_pacer_reason
language sql stable parallel safe as $$
  select case
    when total_visits is null or total_visits = 'NaN' or total_visits in ('Infinity', '-Infinity') or total_visits < 0
         or total_visits <> trunc(total_visits)
      then public.visit_pacer_invalid_value('total_visits', format('total_visits is %s', coalesce(total_visits::text, 'null')),
        'use a whole number of visits, 0 or more')
    when total_visits > 1000000000000000
      then public.visit_pacer_invalid_value('total_visits', format('total_visits is %s', total_visits), 'use at most 1000000000000000 (10^15)')
  end
$$;
create or replace function public.visit_pacer_invalid_window(start_time timestamptz, end_time timestamptz) returns public.visit_pacer_reason
language sql stable parallel safe as $$
  select case
    when start_time < '2000-01-01 00:00:00+00' or start_time >= '2200-01-01 00:00:00+00'
      then public.visit_pacer_invalid_value('start_time', format('start_time is %s', start_time), 'use a time between the years 2000 and 2200')
    when end_time < '2000-01-01 00:00:00+00' or end_time >= '2200-01-01 00:00:00+00'
      then public.visit_pacer_invalid_value('end_time', format('end_time is %s', end_time),
        'use a time between the years 2000 and 2200, or null for no end')
    when end_time <= start_time
      then public.visit_pacer_invalid_value('end_time', format('end_time %s is not after start_time %s', end_time, start_time),
        'move one of the two')
  end
$$;
create or replace function public.visit_pacer_invalid_catch_up(catch_up numeric) returns public.visit_pacer_reason
language sql stable parallel safe as $$
  select case
    when catch_up = 'NaN' or catch_up < 1 or catch_up > 1000 or scale(trim_scale(catch_up)) > 3
      then public.visit_pacer_invalid_value('catch_up', format('catch_up is %s', catch_up),
        'use a number from 1 to 1000 with at most 3 decimals, or null for the default')
  end
$$;
create or replace function public.visit_pacer_invalid(total_visits numeric, visits_per_unit numeric, time_period text,
  start_time timestamptz, end_time timestamptz, catch_up numeric) returns public.visit_pacer_reason
language sql stable parallel safe as $$
  select coalesce(public.visit_pacer_invalid_total(total_visits), public.visit_pacer_invalid_rate(visits_per_unit, time_period),
                  public.visit_pacer_invalid_window(start_time, end_time), public.visit_pacer_invalid_catch_up(catch_up))
$$;
comment on function public.visit_pacer_invalid_rate is 'visit-pacer: why a rate is invalid, or null';
comment on function public.visit_pacer_invalid_total is 'visit-pacer: why a total is invalid, or null';
comment on function public.visit_pacer_invalid_window is 'visit-pacer: why a window is invalid, or null';
comment on function public.visit_pacer_invalid_catch_up is 'visit-pacer: why a catch_up is invalid, or null';
comment on function public.visit_pacer_invalid is 'visit-pacer: why a distribution is invalid, or null';

-- The curve at a moment, in units of 1/86,400,000,000 visit: visits_per_unit * (86400 / unit) * microseconds are finite
-- decimals, so nothing is ever rounded and any number of edits loses nothing. Only for a valid row.
create or replace function public.visit_pacer_curve(anchor_units numeric, anchor_at timestamptz, is_active boolean, total_visits numeric,
  visits_per_unit numeric, time_period text, start_time timestamptz, end_time timestamptz, at timestamptz) returns numeric
language sql stable parallel safe as $$
  select case
    when anchor_units is null or anchor_at is null then null   -- not initialised; greatest() and least() pass over nulls
    when is_active is not true or start_time is null then anchor_units
    else greatest(anchor_units, least(total_visits * 86400000000, anchor_units
      + visits_per_unit * trunc(86400 / public.visit_pacer_unit_seconds(time_period))
        * greatest(0, public.visit_pacer_micros(least(at, end_time)) - public.visit_pacer_micros(greatest(anchor_at, start_time)))))
  end
$$;
comment on function public.visit_pacer_curve is 'visit-pacer: the curve at a moment, in units of 1/86,400,000,000 visit';

-- Whole visits that are due at a curve value: visit k is due when the curve reaches k - 1/2. div() is exact.
create or replace function public.visit_pacer_due(curve_units numeric, total_visits numeric) returns bigint
language sql stable parallel safe as $$ select least(total_visits, div(2 * curve_units + 86400000000, 172800000000))::bigint $$;
comment on function public.visit_pacer_due is 'visit-pacer: whole visits that are due at a curve value';

-- A database-made version number: the microseconds of the clock, and always above the one before.
create or replace function public.visit_pacer_next_version(previous bigint, at timestamptz) returns bigint
language sql stable parallel safe as $$ select greatest(coalesce(previous, 0) + 1, public.visit_pacer_micros(at)::bigint) $$;
comment on function public.visit_pacer_next_version is 'visit-pacer: the next config_version of a row';

create or replace function public.visit_pacer_raise_invalid(reason public.visit_pacer_reason) returns void
language plpgsql immutable as $$
begin
  if reason.code is not null then
    raise exception using errcode = 'check_violation', message = 'visit_distribution: ' || reason.message, hint = reason.hint,
      schema = 'public', table = 'visit_distribution', column = reason.column_name;
  end if;
end $$;
comment on function public.visit_pacer_raise_invalid is 'visit-pacer: raises 23514 if there is a reason';

-- The first progress of a row. The past is closed: what it says is distributed and is not stored by us is its baseline.
create or replace function public.visit_pacer_create_progress(distribution uuid, total_distributed numeric, total_visits numeric)
returns bigint language plpgsql security definer set search_path = '' as $$
declare
  claimed constant bigint := trunc(case
    when total_distributed > 0 and total_distributed < 'Infinity' then least(total_distributed, greatest(total_visits, 0), 1000000000000000)
    else 0 end);
  stored bigint;
  highest bigint;
  kept bigint;
begin
  select count(*), coalesce(max(s.visit_number), 0) into stored, highest
    from public.store_visits s where s.distribution_id = distribution;
  insert into public.visit_distribution_progress as p (distribution_id, distributed, last_number, baseline)
  values (distribution, greatest(claimed, stored), greatest(claimed, stored, highest), greatest(claimed - stored, 0))
  on conflict do nothing;
  select p.distributed into kept from public.visit_distribution_progress p where p.distribution_id = distribution;
  return kept;
end $$;
comment on function public.visit_pacer_create_progress is 'visit-pacer: makes the progress of a row that has none';

-- The one trigger through which every edit passes. It compares values, so that other triggers may have changed columns before it, and
-- it compares with the values that the version and the anchor were made from (visit_pacer_edits), so that an edit that was made while
-- triggers were disabled is found at the next update.
create or replace function public.visit_pacer_before_edit() returns trigger
language plpgsql security definer set search_path = '' set timezone = 'UTC' as $$
declare
  now_at constant timestamptz := clock_timestamp();
  is_replica constant boolean := current_setting('session_replication_role') = 'replica';
  was public.visit_pacer_edits;
  rate_edited boolean;
  catch_up_edited boolean;
  backfill boolean;
begin
  if tg_op = 'INSERT' then
    if is_replica and new.config_version is not null then
      return new;  -- a restore: the row keeps what was dumped, also where it is invalid
    end if;
    if not is_replica then
      perform public.visit_pacer_raise_invalid(public.visit_pacer_invalid(new.total_visits::numeric, new.visits_per_unit::numeric,
        new.time_period::text, new.start_time::timestamptz, new.end_time::timestamptz, new.catch_up));
    end if;
    new.anchor_units := 0;
    new.anchor_at := coalesce(new.start_time::timestamptz, now_at);
    new.config_version := public.visit_pacer_next_version(null, now_at);
    new.changed_xid := pg_current_xact_id();
    new.total_distributed := coalesce((select p.distributed from public.visit_distribution_progress p where p.distribution_id = new.id), 0);
    return new;
  end if;

  if new.id is distinct from old.id then
    perform public.visit_pacer_raise_invalid(public.visit_pacer_invalid_value('id', 'the id of a row cannot change',
      'insert a new row and delete this one'));
  end if;
  new.anchor_units := old.anchor_units;
  new.anchor_at := old.anchor_at;
  new.config_version := old.config_version;
  new.changed_xid := old.changed_xid;
  select * into was from public.visit_pacer_edits e where e.distribution_id = old.id and e.config_version = old.config_version;
  if not found then
    was.partner_id := old.partner_id;
    was.is_active := old.is_active;
    was.total_visits := old.total_visits;
    was.time_period := old.time_period;
    was.visits_per_unit := old.visits_per_unit;
    was.start_time := old.start_time;
    was.end_time := old.end_time;
  end if;
  rate_edited := (new.is_active, new.total_visits::numeric, new.time_period::text, new.visits_per_unit::numeric,
                  new.start_time::timestamptz, new.end_time::timestamptz, new.partner_id::text)
    is distinct from (was.is_active, was.total_visits, was.time_period, was.visits_per_unit, was.start_time, was.end_time, was.partner_id);
  catch_up_edited := new.catch_up is distinct from old.catch_up;
  backfill := exists (select from public.visit_distribution_progress p where p.distribution_id = old.id and p.backfill);
  if not (rate_edited or catch_up_edited or backfill or old.anchor_at is null) then
    return new;
  end if;

  -- Only what is being written is checked: an old bad row can still be paused, repaired or deleted.
  if new.total_visits is distinct from old.total_visits then
    perform public.visit_pacer_raise_invalid(public.visit_pacer_invalid_total(new.total_visits::numeric));
  end if;
  if (new.visits_per_unit, new.time_period) is distinct from (old.visits_per_unit, old.time_period) then
    perform public.visit_pacer_raise_invalid(public.visit_pacer_invalid_rate(new.visits_per_unit::numeric, new.time_period::text));
  end if;
  if (new.start_time, new.end_time) is distinct from (old.start_time, old.end_time) then
    perform public.visit_pacer_raise_invalid(public.visit_pacer_invalid_window(new.start_time::timestamptz, new.end_time::timestamptz));
  end if;
  if catch_up_edited then
    perform public.visit_pacer_raise_invalid(public.visit_pacer_invalid_catch_up(new.catch_up));
  end if;

  if old.anchor_at is null then
    -- A row that existed before this trigger: the curve begins now, with what the row says is distributed.
    new.anchor_units := 86400000000 * public.visit_pacer_create_progress(old.id, old.total_distributed::numeric, old.total_visits::numeric);
    new.anchor_at := now_at;
  elsif backfill then
    -- As if this rate had held since start_time.
    new.anchor_units := 0;
    new.anchor_at := coalesce(new.start_time::timestamptz, now_at);
    update public.visit_distribution_progress p set backfill = false where p.distribution_id = old.id;
  elsif rate_edited then
    -- The past stays as it was: the old curve, as it is at this moment, is where the new one begins.
    if public.visit_pacer_invalid(was.total_visits, was.visits_per_unit, was.time_period, was.start_time, was.end_time, null) is null then
      new.anchor_units := public.visit_pacer_curve(old.anchor_units, old.anchor_at, was.is_active, was.total_visits,
        was.visits_per_unit, was.time_period, was.start_time, was.end_time, now_at);
    end if;
    new.anchor_at := now_at;
  end if;
  new.config_version := public.visit_pacer_next_version(old.config_version, now_at);
  new.changed_xid := pg_current_xact_id();
  if rate_edited and new.updated_at is not distinct from old.updated_at then
    new.updated_at := now_at;
  end if;
  if was.is_active and new.is_active is not true then
    new.total_distributed := coalesce((select p.distributed from public.visit_distribution_progress p where p.distribution_id = new.id),
                                      new.total_distributed);
  end if;
  return new;
end $$;
comment on function public.visit_pacer_before_edit is 'visit-pacer: checks an edit, and anchors the curve at its moment';

create or replace function public.visit_pacer_after_insert() returns trigger
language plpgsql security definer set search_path = '' as $$
begin
  -- A restore brings the progress, before or after its row; where it does not, the next sync makes it.
  if current_setting('session_replication_role') <> 'replica' then
    insert into public.visit_distribution_progress (distribution_id) values (new.id) on conflict do nothing;
  end if;
  return null;
end $$;
comment on function public.visit_pacer_after_insert is 'visit-pacer: gives a new row its progress, or continues what is there';

-- Of a statement, the rows whose version it moved. A write-back moves none.
--
-- Without nested loops: a plan for the rows of a small statement is kept for the session, and would be quadratic for a large one.
create or replace function public.visit_pacer_after_edit() returns trigger
language plpgsql security definer set search_path = '' set timezone = 'UTC' set enable_nestloop = off as $$
declare
  kept constant integer := 200;
  editor constant text := session_user || coalesce(' (' || nullif(current_setting('application_name', true), '') || ')', '');
  edited uuid;
begin
  if tg_op = 'INSERT' then
    if current_setting('session_replication_role') = 'replica' then
      return null;  -- a restore brings the edits
    end if;
    insert into public.visit_pacer_edits
    select n.id, n.config_version, clock_timestamp(), editor, n.partner_id::text, n.is_active, n.total_visits::numeric, n.visits_per_unit::numeric,
           n.time_period::text, public.visit_pacer_utc(n.start_time), public.visit_pacer_utc(n.end_time), n.anchor_units, n.anchor_at
      from new_rows n where n.config_version is not null
    on conflict do nothing;
    return null;
  end if;
  insert into public.visit_pacer_edits
  select n.id, n.config_version, case when n.anchor_at is distinct from o.anchor_at then n.anchor_at else clock_timestamp() end,
         case when o.config_version is not null then editor end,  -- null: a row from before the triggers; nobody edited it
         n.partner_id::text, n.is_active, n.total_visits::numeric, n.visits_per_unit::numeric, n.time_period::text,
         public.visit_pacer_utc(n.start_time), public.visit_pacer_utc(n.end_time), n.anchor_units, n.anchor_at
    from new_rows n join old_rows o on o.id = n.id
   where n.config_version is distinct from o.config_version and n.config_version is not null
  on conflict do nothing;
  -- One edit in ten removes those that are too many.
  for edited in
    select n.id from new_rows n join old_rows o on o.id = n.id
     where n.config_version is distinct from o.config_version and n.config_version % 10 = 0
  loop
    delete from public.visit_pacer_edits e
     where e.distribution_id = edited
       and e.config_version < (select l.config_version from public.visit_pacer_edits l where l.distribution_id = edited
                                order by l.config_version desc offset kept limit 1);
  end loop;
  return null;
end $$;
comment on function public.visit_pacer_after_edit is 'visit-pacer: keeps what a row asked for before and after an edit of its pace';

create or replace function public.visit_pacer_mark_decrease() returns trigger
language plpgsql set search_path = '' as $$
begin
  new.decreased_xid := pg_current_xact_id();
  return new;
end $$;
comment on function public.visit_pacer_mark_decrease is 'visit-pacer: marks a counter that was lowered, for agents that have the higher one';

create or replace function public.visit_pacer_after_delete() returns trigger
language plpgsql security definer set search_path = '' as $$
declare
  gone uuid;
begin
  if tg_op = 'TRUNCATE' then
    insert into public.visit_pacer_deletions (distribution_id) values (null);
    delete from public.visit_pacer_edits;
  else
    insert into public.visit_pacer_deletions (distribution_id) select d.id from deleted d;
    for gone in select d.id from deleted d loop  -- by the index, however many the statement deletes
      delete from public.visit_pacer_edits e where e.distribution_id = gone;
    end loop;
  end if;
  -- Those that another transaction removes as well are left to it: nobody waits here.
  delete from public.visit_pacer_deletions g
   where g.ctid = any (array(select o.ctid from public.visit_pacer_deletions o where o.deleted_at < clock_timestamp() - interval '1 hour'
                              for update skip locked));
  return null;
end $$;
comment on function public.visit_pacer_after_delete is 'visit-pacer: notes which rows are gone, for agents that were not told; their edits go with them';

-- Rows that no trigger has seen, or that were edited while triggers were disabled: called by the last migration for the rows that existed,
-- and by every sync. Rows that somebody holds are left for the next time. The user's triggers on visit_distribution run under it, so it
-- changes no setting.
create or replace function public.visit_pacer_initialise() returns bigint
language plpgsql as $$
declare
  touched bigint;
begin
  -- Without the control row nothing may be stored.
  insert into public.visit_pacer_control (id)
    select true where not exists (select from public.visit_pacer_control) on conflict do nothing;
  perform public.visit_pacer_refresh_columns();
  with unseen as (
    select v.id from public.visit_distribution v
      left join public.visit_pacer_edits e on e.distribution_id = v.id and e.config_version = v.config_version
     where v.anchor_at is null
        or (e.distribution_id is not null
            and (v.is_active, v.total_visits::numeric, v.time_period::text, v.visits_per_unit::numeric,
                 public.visit_pacer_utc(v.start_time), public.visit_pacer_utc(v.end_time), v.partner_id::text)
                is distinct from (e.is_active, e.total_visits, e.time_period, e.visits_per_unit, e.start_time, e.end_time, e.partner_id))
     order by v.id for no key update of v skip locked)
  update public.visit_distribution v set total_distributed = v.total_distributed from unseen where v.id = unseen.id;  -- the trigger does the rest
  get diagnostics touched = row_count;
  with unseen as (
    select v.id, v.total_distributed, v.total_visits from public.visit_distribution v
     where not exists (select from public.visit_distribution_progress p where p.distribution_id = v.id)
     order by v.id for no key update skip locked)
  select touched + count(public.visit_pacer_create_progress(u.id, u.total_distributed::numeric, u.total_visits::numeric))
    into touched from unseen u;
  return touched;
end $$;
comment on function public.visit_pacer_initialise is 'visit-pacer: anchors rows that no trigger has seen, or that were edited while triggers were disabled';

-- Triggers fire in the order of their names: zzz_ makes these the last. ALWAYS: also under session_replication_role = replica.
create or replace trigger zzz_visit_pacer_before_edit before insert or update on public.visit_distribution
  for each row execute function public.visit_pacer_before_edit();
create or replace trigger zzz_visit_pacer_after_insert after insert on public.visit_distribution
  for each row execute function public.visit_pacer_after_insert();
create or replace trigger zzz_visit_pacer_after_edit_insert after insert on public.visit_distribution
  referencing new table as new_rows for each statement execute function public.visit_pacer_after_edit();
create or replace trigger zzz_visit_pacer_after_edit_update after update on public.visit_distribution
  referencing new table as new_rows old table as old_rows for each statement execute function public.visit_pacer_after_edit();
create or replace trigger zzz_visit_pacer_after_delete after delete on public.visit_distribution
  referencing old table as deleted for each statement execute function public.visit_pacer_after_delete();
create or replace trigger zzz_visit_pacer_after_truncate after truncate on public.visit_distribution
  for each statement execute function public.visit_pacer_after_delete();
alter table public.visit_distribution
  enable always trigger zzz_visit_pacer_before_edit,
  enable always trigger zzz_visit_pacer_after_insert,
  enable always trigger zzz_visit_pacer_after_edit_insert,
  enable always trigger zzz_visit_pacer_after_edit_update,
  enable always trigger zzz_visit_pacer_after_delete,
  enable always trigger zzz_visit_pacer_after_truncate;

create or replace trigger zzz_visit_pacer_mark_decrease before update of distributed on public.visit_distribution_progress
  for each row when (new.distributed < old.distributed) execute function public.visit_pacer_mark_decrease();

select public.visit_pacer_revoke_public();

insert into public.visit_pacer_migrations (version) values ('20261201000200') on conflict do nothing;
