-- The tables of the recordings, as their frames describe them.
create table visit_distribution (
    id uuid primary key default gen_random_uuid(),
    partner_id uuid not null,
    total_visits bigint not null,
    time_period text not null,
    visits_per_unit numeric(12, 2) not null,
    is_active boolean not null default true,
    start_time timestamptz default now(),
    end_time timestamptz,
    total_distributed bigint not null default 0,
    last_distribution timestamptz,
    created_at timestamptz default now(),
    updated_at timestamptz default now()
);
create table vd_rls (like visit_distribution including all);
alter table vd_rls enable row level security;
create table vd_notpub (like visit_distribution including all);
create table vd_nopk (a bigint, b text);
create table vd_types (
    id bigint primary key, i2 int2, i4 int4, i8 int8, n numeric, n122 numeric(12, 2), f4 float4, f8 float8,
    b boolean, t text, vc varchar(20), ch char(5), u uuid, d date, tm time, ttz timetz, ts timestamp,
    tstz timestamptz, iv interval, j json, jb jsonb, ba bytea, arr_i int4[], arr_t text[], ip inet,
    e text default 'x'
);
create publication supabase_realtime for table visit_distribution, vd_rls, vd_nopk, vd_types;
