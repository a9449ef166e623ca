//! The history of edits, each with its curve, and the report that draws it.

use crate::harness::Place;

#[tokio::test]
async fn each_edit_of_the_rate_is_kept_with_its_editor_write_backs_are_not_and_the_history_is_deleted_with_the_row()
 {
    let place = Place::new().await;
    let _agent = place.agent().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    place.has_stored(row, 20).await;
    for edit in [
        "visits_per_unit = 30",
        "is_active = false",
        "is_active = true",
        "last_distribution = now()",
    ] {
        place.set(row, edit).await;
    }
    place.has_stored(row, 60).await;
    let edits = format!("from visit_pacer_edits where distribution_id = '{row}'");
    assert_eq!(
        place.ask::<i64>(format!("select count(*) {edits}")).await,
        4
    );
    let unknown = format!("select count(*) {edits} and edited_by is null");
    assert_eq!(place.ask::<i64>(unknown).await, 0);
    place
        .edit(format!("delete from visit_distribution where id = '{row}'"))
        .await;
    assert_eq!(
        place.ask::<i64>(format!("select count(*) {edits}")).await,
        0
    );
}

#[tokio::test]
async fn about_two_hundred_edits_of_a_row_are_kept() {
    let place = Place::new().await;
    let row = place.insert(1_000_000, "20 a second", "null").await;
    for turn in 0..400 {
        place.set(row, &format!("visits_per_unit = {turn}")).await;
    }
    let kept: i64 = place
        .ask(format!(
            "select count(*) from visit_pacer_edits where distribution_id = '{row}'"
        ))
        .await;
    assert!((200..320).contains(&kept), "{kept} are kept");
}

#[tokio::test]
async fn a_report_counts_due_and_stored_visits_and_marks_the_edits() {
    let place = Place::new().await;
    let _agent = place.agent().await;
    let row = place.insert(300, "50 a second", "null").await;
    place.has_stored(row, 100).await;
    place.set(row, "is_active = false").await;
    place.set(row, "is_active = true").await;
    place.becomes(row, "completed").await;
    let file = place.folder.path().join("report.svg");
    let path = file.to_str().expect("UTF-8");
    let id = row.to_string();
    let made = place.command(&["report", "--id", &id, "--out", path]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    assert!(made.said.contains("300 of 300"), "{made:?}");
    let picture = std::fs::read_to_string(&file).expect("the picture");
    for words in [
        "paused",
        "resumed",
        "300 visits became due, 300 are stored",
        "synthetic",
    ] {
        assert!(picture.contains(words), "{words}");
    }
    let page = place.folder.path().join("report.html");
    let path = page.to_str().expect("UTF-8");
    let made = place.command(&["report", "--id", &id, "--out", path]).await;
    assert_eq!(made.code, Some(0), "{made:?}");
    let wrong = place
        .command(&["report", "--id", &id, "--out", "report.pdf"])
        .await;
    assert_eq!(wrong.code, Some(1), "{wrong:?}");
    assert!(wrong.said.contains(".svg nor .html"), "{wrong:?}");
}
