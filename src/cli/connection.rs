//! The database of the commands that connect once.

use crate::postgres::connection::Connection;
use crate::postgres::reconnect::Database;
use crate::settings::Environment;

/// The database, without probing for a transaction pooler: every call is a transaction of its own.
pub fn database() -> anyhow::Result<Database> {
    Ok(Environment::load()?.database()?.in_transactions())
}

/// One connection.
pub async fn connect() -> anyhow::Result<Connection> {
    Ok(database()?.connect().await?)
}
