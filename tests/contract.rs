//! What users see and every release keeps: one file a promise.

mod agents;
mod bad_rows;
mod both_ways;
mod by_hand;
mod cli;
mod curve;
mod dashboard;
mod doctor;
mod edits;
mod exactly_once;
mod keys;
mod log;
mod metrics;
mod migrations;
mod neighbour;
mod pace;
mod pause;
mod poolers;
mod postgres_away;
mod realtime_away;
mod since;
mod stack;
mod tls;
mod told;
mod write;
