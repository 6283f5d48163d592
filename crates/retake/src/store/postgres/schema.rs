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
CREATE INDEX checkpoints_by_xid ON checkpoints (xid, execution, seq);

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

-- What a worker is to advance: a row as long as there is something to do. Where it stands is what its indexes are by, so
-- that a claim finds what is due beside any number of others. Rows change and go all the time: pages keep room, and are
-- cleaned after a number of changes, however many rows there are.
CREATE TABLE tickets (
    execution       bigint NOT NULL REFERENCES executions ON DELETE CASCADE,
    stand           text NOT NULL CHECK (stand IN ('ready', 'delayed', 'held', 'claimed', 'stuck')),
    lane            bytea NOT NULL,
    -- That which it is in once it has been claimed.
    later_lane      bytea NOT NULL,
    queue           bytea NOT NULL,
    priority        integer NOT NULL,
    requires        bytea[] NOT NULL,
    -- The workflow, until somebody has advanced the execution.
    starts          bytea,
    -- Of a ready one since when, of a delayed one from when on, of a claimed one when its lease was to run out.
    due             timestamptz NOT NULL,
    -- When it is due after its claim, where it was enqueued meanwhile.
    again           timestamptz,
    claims          integer NOT NULL DEFAULT 0,
    claimed_queue   bytea,
    claimed_fence   bigint,
    claimed_head    bigint,
    PRIMARY KEY (execution)
) WITH (fillfactor = 70, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 1000,
    autovacuum_vacuum_cost_delay = 0);
CREATE INDEX tickets_ready ON tickets (lane, priority DESC, due, execution) WHERE stand = 'ready';
CREATE INDEX tickets_timed ON tickets (due) WHERE stand IN ('delayed', 'claimed');
CREATE INDEX tickets_claimed ON tickets (claimed_queue) WHERE stand = 'claimed';

CREATE TABLE limits (
    kind            text NOT NULL CHECK (kind IN ('running', 'starts')),
    name            bytea NOT NULL,
    most            bigint NOT NULL,
    -- In microseconds.
    period          bigint,
    -- When the bucket is full again.
    full_at         timestamptz NOT NULL,
    -- Grows with every claim.
    version         bigint NOT NULL,
    PRIMARY KEY (kind, name)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200,
    autovacuum_vacuum_cost_delay = 0);

-- Deduplication keys, as hashes.
CREATE TABLE submissions (
    key             bytea NOT NULL,
    execution       bigint NOT NULL REFERENCES executions ON DELETE CASCADE,
    PRIMARY KEY (key)
);
CREATE INDEX submissions_by_execution ON submissions (execution);

CREATE TABLE workers (
    id              uuid NOT NULL,
    name            bytea NOT NULL,
    version         bytea NOT NULL,
    queues          bytea[] NOT NULL,
    concurrency     bigint NOT NULL,
    running         bigint NOT NULL,
    started_at      timestamptz NOT NULL,
    seen_at         timestamptz NOT NULL,
    PRIMARY KEY (id)
) WITH (fillfactor = 50, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 200);
";

/// What takes a store from the format before to each format, in their order, from nothing on.
pub(super) const MIGRATIONS: &[(u32, &str)] = &[(FORMAT, FORMAT_1)];
