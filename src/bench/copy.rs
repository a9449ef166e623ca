//! Client-side COPY in the binary format: the fastest way for a client to store the same rows in the same table, without
//! checks, locks or progress. The writer is compared with it.
//!
//! The format: <https://www.postgresql.org/docs/current/sql-copy.html>, "Binary Format".

use anyhow::Context as _;
use sqlx::PgConnection;

use crate::domain::batch::Batch;
use crate::domain::partner::PartnerId;
use crate::domain::visit::Generator;

const INTO: &str = "copy public.store_visits (distribution_id, partner_id, visit_number, id, visited_at, session_duration, \
                    page_path, user_agent, referrer, device_type) from stdin (format binary)";
const COLUMNS: i16 = 10;
const SIGNATURE: &[u8] = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0";
/// 2000-01-01 in microseconds since 1970-01-01.
const POSTGRES_EPOCH_US: i64 = 946_684_800_000_000;
/// A frame of the protocol, in bytes; larger ones are no faster.
const FRAME: usize = 64 * 1024;

/// Stores the visits of a batch; one COPY is one transaction.
pub async fn copy(
    connection: &mut PgConnection,
    batch: &Batch,
    generator: &Generator,
) -> anyhow::Result<()> {
    let text = rows(batch, generator);
    let mut copying = connection.copy_in_raw(INTO).await.context("begin COPY")?;
    for frame in text.chunks(FRAME) {
        copying.send(frame).await.context("send rows")?;
    }
    copying.finish().await.context("end COPY")?;
    Ok(())
}

fn rows(batch: &Batch, generator: &Generator) -> Vec<u8> {
    let mut out = SIGNATURE.to_vec();
    for row in &batch.rows {
        // The bench's own tables: partners have UUIDs.
        let PartnerId::Uuid(partner) = &row.partner_id else {
            continue;
        };
        for (number, moment) in (row.before.last_number + 1..).zip(&row.visit_times) {
            let visit = generator.visit(row.id, &row.partner_id, number, *moment);
            out.extend(COLUMNS.to_be_bytes());
            field(&mut out, row.id.as_bytes());
            field(&mut out, partner.as_bytes());
            field(&mut out, &number.to_be_bytes());
            field(&mut out, visit.id.as_bytes());
            field(
                &mut out,
                &(moment.as_micros() - POSTGRES_EPOCH_US).to_be_bytes(),
            );
            field(&mut out, &visit.session_duration.to_be_bytes());
            field(&mut out, visit.page_path.as_bytes());
            for text in [visit.user_agent, visit.referrer, visit.device_type] {
                match text {
                    Some(text) => field(&mut out, text.as_bytes()),
                    None => out.extend((-1_i32).to_be_bytes()),
                }
            }
        }
    }
    out.extend((-1_i16).to_be_bytes());
    out
}

fn field(out: &mut Vec<u8>, value: &[u8]) {
    let length = i32::try_from(value.len()).expect("a field of a visit is short");
    out.extend(length.to_be_bytes());
    out.extend(value);
}
