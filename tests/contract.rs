//! What users see and every release keeps: one file a promise.

mod pace;
