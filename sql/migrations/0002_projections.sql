-- What the events mean, as tables. Every one of them can be thrown away and rebuilt: `ade log rebuild`.

CREATE TABLE workspaces (
    id         text        PRIMARY KEY,
    created_at timestamptz NOT NULL
);

CREATE TABLE configs (
    id           text        PRIMARY KEY,
    workspace_id text        NOT NULL,
    name         text        NOT NULL,
    version      int         NOT NULL,
    digest       text        NOT NULL,
    created_id   bigint      NOT NULL,
    created_at   timestamptz NOT NULL,
    updated_at   timestamptz NOT NULL
);
CREATE UNIQUE INDEX configs_by_name ON configs (workspace_id, name);

CREATE TABLE config_versions (
    config_id  text        NOT NULL,
    version    int         NOT NULL,
    digest     text        NOT NULL,
    created_at timestamptz NOT NULL,
    PRIMARY KEY (config_id, version)
);

CREATE TABLE documents (
    id           text        PRIMARY KEY,
    workspace_id text        NOT NULL,
    name         text        NOT NULL,
    size         bigint      NOT NULL,
    sha256       text        NOT NULL,
    media_type   text        NOT NULL,
    created_id   bigint      NOT NULL,
    created_at   timestamptz NOT NULL
);
CREATE INDEX documents_of_workspace ON documents (workspace_id, created_id);

CREATE TABLE safe_mode (
    id         bigint      PRIMARY KEY,
    enabled    boolean     NOT NULL,
    changed_at timestamptz NOT NULL
);

CREATE TABLE builds (
    id                  text        PRIMARY KEY,
    workspace_id        text        NOT NULL,
    config_id           text        NOT NULL,
    config_version      int         NOT NULL,
    status              text        NOT NULL,
    reason              text        NOT NULL,
    fingerprint         text        NOT NULL,
    engine              text,
    step                text,
    exit_code           int,
    error_message       text,
    stop_reason         text,
    summary             text,
    packages            json,
    python              text,
    requested_by        text        NOT NULL,
    attempt             int         NOT NULL,
    worker_id           text,
    duration_ms         bigint,
    cancel_requested_at timestamptz,
    created_id          bigint      NOT NULL,
    created_at          timestamptz NOT NULL,
    started_at          timestamptz,
    finished_at         timestamptz,
    updated_at          timestamptz NOT NULL
);
CREATE INDEX builds_of_config ON builds (config_id, created_id);
CREATE INDEX builds_by_age ON builds (created_id);
CREATE INDEX builds_open ON builds (created_id) WHERE status IN ('queued', 'building');

CREATE TABLE runs (
    id                  text        PRIMARY KEY,
    workspace_id        text        NOT NULL,
    config_id           text        NOT NULL,
    config_version      int         NOT NULL,
    config_digest       text        NOT NULL,
    build_id            text,
    status              text        NOT NULL,
    waiting_for         text,
    options             json       NOT NULL,
    inputs              json       NOT NULL,
    exit_code           int,
    error_message       text,
    stop_reason         text,
    summary             text,
    result              json,
    requested_by        text        NOT NULL,
    attempt             int         NOT NULL,
    worker_id           text,
    duration_ms         bigint,
    lines               bigint,
    bytes               bigint,
    cancel_requested_at timestamptz,
    created_id          bigint      NOT NULL,
    created_at          timestamptz NOT NULL,
    started_at          timestamptz,
    finished_at         timestamptz,
    updated_at          timestamptz NOT NULL
);
CREATE INDEX runs_of_config ON runs (config_id, created_at);
CREATE INDEX runs_of_workspace ON runs (workspace_id, created_id);
CREATE INDEX runs_of_build ON runs (build_id);
CREATE INDEX runs_by_age ON runs (created_id);
CREATE INDEX runs_open ON runs (created_id) WHERE status IN ('queued', 'running');

CREATE TABLE artifacts (
    id         text        PRIMARY KEY,
    run_id     text        NOT NULL,
    name       text        NOT NULL,
    size       bigint      NOT NULL,
    sha256     text        NOT NULL,
    media_type text        NOT NULL,
    created_id bigint      NOT NULL,
    created_at timestamptz NOT NULL
);
CREATE INDEX artifacts_of_run ON artifacts (run_id, created_id);

CREATE TABLE run_logs (
    id         bigint      PRIMARY KEY,
    run_id     text        NOT NULL,
    created_at timestamptz NOT NULL,
    stream     text        NOT NULL,
    level      text,
    message    text        NOT NULL
);
CREATE INDEX run_logs_of_run ON run_logs (run_id, id);

CREATE TABLE build_logs (
    id         bigint      PRIMARY KEY,
    build_id   text        NOT NULL,
    created_at timestamptz NOT NULL,
    stream     text        NOT NULL,
    level      text,
    step       text,
    message    text        NOT NULL
);
CREATE INDEX build_logs_of_build ON build_logs (build_id, id);

INSERT INTO checkpoints (projection, id) VALUES ('run_logs', 0), ('build_logs', 0);
