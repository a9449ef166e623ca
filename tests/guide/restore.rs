//! A dump comes back as it was: a schema-only dump, then a data-only one under `session_replication_role = replica`, as Supabase documents it.

use super::Database;

/// What a restore must keep of each distribution.
const KEPT: &str = "
  select format('%s %s %s %s %s %s %s', v.id, v.config_version, v.anchor_units, v.anchor_at, v.changed_xid, v.total_distributed, v.time_period)
    from visit_distribution v
  union all select format('progress %s', p) from visit_distribution_progress p
  union all select format('edit %s', e) from visit_pacer_edits e
  order by 1";

/// Tables of the data, in both orders in which a dump may bring them.
const ORDERS: [[&str; 4]; 2] = [
    [
        "partners",
        "visit_distribution",
        "visit_distribution_progress",
        "visit_pacer_edits",
    ],
    [
        "visit_pacer_edits",
        "visit_distribution_progress",
        "visit_distribution",
        "partners",
    ],
];

/// A database in use: two distributions, one of them invalid, with visits and edits.
async fn in_use() -> Database {
    let mut db = Database::migrated().await;
    let (partner, other) = (db.partner().await, db.partner().await);
    let row = db
        .insert(partner, 1_000, "10 a second", "-10 seconds", "1 hour")
        .await;
    let invalid = db
        .insert(other, 1_000, "10 a second", "-10 seconds", "1 hour")
        .await;
    db.run(format!(
        "update visit_distribution set visits_per_unit = 20 where id = '{row}'; select distribute_visits();
         alter table visit_distribution disable trigger all;
         update visit_distribution set time_period = 'week' where id = '{invalid}';
         alter table visit_distribution enable trigger all;
         alter table visit_distribution enable always trigger zzz_visit_pacer_before_edit,
           enable always trigger zzz_visit_pacer_after_insert, enable always trigger zzz_visit_pacer_after_edit_insert"
    ))
    .await;
    db
}

#[tokio::test]
async fn a_data_only_restore_keeps_anchors_versions_progress_and_edits_in_any_order_of_tables() {
    for order in ORDERS {
        let mut db = in_use().await;
        let before = db.said(KEPT).await;
        assert!(before.len() >= 6, "{before:?}");
        let mut sql = String::from("begin; set local session_replication_role = replica;");
        sql.extend(order.map(|table| {
            format!("create temp table kept_{table} on commit drop as table {table};")
        }));
        sql += "truncate partners, visit_distribution, visit_distribution_progress, visit_pacer_edits, store_visits;
                delete from visit_pacer_edits;";
        sql.extend(order.map(|table| format!("insert into {table} select * from kept_{table};")));
        db.run(sql + "commit").await;
        assert_eq!(db.said(KEPT).await, before, "{order:?}");
        assert_eq!(
            db.ask::<i64>("select count(*) from visit_distribution v where visit_distribution_due(v.id) is not null")
                .await,
            1,
            "the invalid row came back as well, and is invalid"
        );
    }
}

#[tokio::test]
async fn a_restore_without_progress_is_completed_by_the_next_sync() {
    let mut db = in_use().await;
    db.run("delete from visit_distribution_progress; select sync_distribution_counts()")
        .await;
    let healed = "select count(*) from visit_distribution_progress p
                   where distributed = (select count(*) from store_visits s where s.distribution_id = p.distribution_id)
                     and last_number = distributed";
    assert_eq!(db.ask::<i64>(healed).await, 2);
}

#[tokio::test]
async fn numbers_behind_what_is_stored_are_healed_by_the_sync() {
    let mut db = in_use().await;
    db.run("update visit_distribution_progress set last_number = 0")
        .await;
    let said = db
        .said("select message from sync_distribution_counts()")
        .await;
    assert_eq!(said.len(), 2, "{said:?}");
    let continues = |line: &String| line.contains("the next visit number continues after");
    assert!(said.iter().all(continues), "{said:?}");
    assert_eq!(
        db.ask::<i64>(
            "select count(*) from visit_distribution_progress where last_number <> distributed"
        )
        .await,
        0
    );
}
