//! The tables, by format.

/// The format that this version writes.
pub(super) const FORMAT: u32 = 1;

/// What makes the tables of format 1.
///
/// Commits change rows of `executions` in place: no index is on what they change, but for how it stands, and pages keep
/// room. There are no references but from keyframes: checking one would lock the row that it names at every commit.
pub(super) const FORMAT_1: &str = "
-- Keys of executions and deltas: each store takes as many at once.
CREATE SEQUENCE keys INCREMENT BY 1024 MINVALUE 1;
CREATE SEQUENCE request_keys;

-- The time that leases go by.
CREATE FUNCTION moment() RETURNS timestamptz LANGUAGE sql STABLE PARALLEL SAFE RETURN now();

CREATE TABLE executions (
    key             bigint NOT NULL,
    id              uuid NOT NULL,
    name            bytea NOT NULL,
    created_at      bigint NOT NULL,
    origin_id       uuid,
    origin_seq      bigint,
    workflow        uuid NOT NULL,
    workflow_name   bytea NOT NULL,
    state           bytea NOT NULL,
    state_name      text NOT NULL,
    head            bigint NOT NULL,
    updated_at      bigint NOT NULL,
    spend           bytea NOT NULL,
    link            bytea NOT NULL,
    checksum        bytea NOT NULL,
    log_last        bigint NOT NULL,
    log_link        bytea NOT NULL,
    log_checksum    bytea NOT NULL,
    prunings        bigint NOT NULL DEFAULT 0,
    slack           bigint NOT NULL DEFAULT 0,
    slack_max       bigint NOT NULL,
    fence           bigint NOT NULL DEFAULT 0,
    owner           bytea,
    owner_id        uuid,
    lease_until     timestamptz,
    PRIMARY KEY (key)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0.05);
CREATE UNIQUE INDEX executions_by_id ON executions (id);
-- A name may be longer than an index takes.
CREATE UNIQUE INDEX executions_by_name ON executions (sha256(name));
CREATE INDEX executions_by_creation ON executions (created_at, id);
CREATE INDEX executions_by_state ON executions (state_name, created_at, id);
CREATE INDEX executions_by_origin ON executions (origin_id, created_at, id) WHERE origin_id IS NOT NULL;

CREATE TABLE workflows (
    id              uuid NOT NULL,
    definition      bytea NOT NULL,
    checksum        bytea NOT NULL,
    PRIMARY KEY (id)
);

CREATE TABLE execution_workflows (
    execution       bigint NOT NULL,
    workflow        uuid NOT NULL,
    checksum        bytea NOT NULL,
    PRIMARY KEY (execution, workflow)
);
CREATE INDEX execution_workflows_by_workflow ON execution_workflows (workflow);

CREATE TABLE deltas (
    key             bigint NOT NULL,
    base            bigint,
    body            bytea NOT NULL,
    checksum        bytea NOT NULL,
    PRIMARY KEY (key)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE INDEX deltas_by_base ON deltas (base) WHERE base IS NOT NULL;
-- What is worth compressing is compressed already.
ALTER TABLE deltas ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE keyframes (
    delta           bigint NOT NULL REFERENCES deltas ON DELETE CASCADE,
    size            bigint NOT NULL,
    body            bytea NOT NULL,
    checksum        bytea NOT NULL,
    PRIMARY KEY (delta)
);
ALTER TABLE keyframes ALTER COLUMN body SET STORAGE EXTERNAL;

CREATE TABLE checkpoints (
    execution       bigint NOT NULL,
    seq             bigint NOT NULL,
    parent          bigint,
    delta           bigint NOT NULL,
    created_at      bigint NOT NULL,
    completed_nodes bigint NOT NULL,
    size_bytes      bigint NOT NULL,
    -- The transaction that wrote it: those before the oldest that still runs have come to their end.
    xid             xid8 NOT NULL DEFAULT pg_current_xact_id(),
    id              uuid NOT NULL,
    workflow        uuid NOT NULL,
    compressed      boolean NOT NULL,
    cause           bytea NOT NULL,
    label           bytea,
    state           bytea NOT NULL,
    nodes           bytea NOT NULL,
    spend           bytea NOT NULL,
    link            bytea NOT NULL,
    checksum        bytea NOT NULL,
    PRIMARY KEY (execution, seq)
) WITH (autovacuum_vacuum_scale_factor = 0.05);
CREATE UNIQUE INDEX checkpoints_by_id ON checkpoints (id);
CREATE INDEX checkpoints_by_delta ON checkpoints (delta);
CREATE INDEX checkpoints_by_xid ON checkpoints (xid);

CREATE TABLE gaps (
    execution       bigint NOT NULL,
    first           bigint NOT NULL,
    last            bigint NOT NULL,
    link            bytea NOT NULL,
    checksum        bytea NOT NULL,
    PRIMARY KEY (execution, first)
);

CREATE TABLE operations (
    execution       bigint NOT NULL,
    number          bigint NOT NULL,
    at              bigint NOT NULL,
    head_before     bigint NOT NULL,
    head_after      bigint NOT NULL,
    who             bytea NOT NULL,
    command         bytea NOT NULL,
    cause           bytea NOT NULL,
    link            bytea NOT NULL,
    checksum        bytea NOT NULL,
    PRIMARY KEY (execution, number)
);

CREATE TABLE requests (
    key             bigint NOT NULL,
    execution       bigint NOT NULL,
    id              uuid NOT NULL,
    body            bytea NOT NULL,
    checksum        bytea NOT NULL,
    PRIMARY KEY (key)
) WITH (autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 500);
CREATE UNIQUE INDEX requests_by_id ON requests (id);
CREATE INDEX requests_by_execution ON requests (execution, key);
";

/// What takes a store from the format before to each format, in their order, from nothing on.
pub(super) const MIGRATIONS: &[(u32, &str)] = &[(FORMAT, FORMAT_1)];
