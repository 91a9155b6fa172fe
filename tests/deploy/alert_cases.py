"""When each alert fires and when it stays quiet.

Values are those of promtool, one a minute: ``1+2x3`` is 1, 3, 5, 7 and ``1x3`` is 1, 1, 1, 1.
"""

from __future__ import annotations

from tests.deploy.alert_series import (
    ACME,
    AT,
    CENTRAL,
    JOB,
    UP,
    Case,
    J,
    K,
    bare,
    connections,
    failures,
    grants,
    histogram,
    keys_missing,
    reads,
    refreshes,
    role,
)

NEEDED_NOW, NEEDED_SOON = ({**AT, "needed": needed} for needed in ("now", "soon"))

CASES = (
    Case(
        alert="TokenwardDown", why="no answer for two minutes",
        series=bare("up", "1 1 0x20"), at=4, fires=((AT, 0),),
    ),
    Case(alert="TokenwardDown", why="one scrape missed", series=bare("up", "1 0 1x20"), at=2),
    Case(
        alert="TokenwardDown", why="somebody else's target",
        series={'up{job="node",instance="a:9100"}': "0x20"}, at=10,
    ),
    Case(
        alert="TokenwardAbsent", why="no target at all",
        series={'up{job="node",instance="a:9100"}': "1x20"}, at=5, fires=(({}, 1),),
    ),
    Case(alert="TokenwardAbsent", why="a target that is down", series=bare("up", "0x20"), at=10),
    Case(
        alert="TokenwardRestarting", why="three starts in a quarter of an hour",
        series=bare("process_start_time_seconds", "100x3 200x3 300x3 400x10"), at=12,
        fires=((AT, 3),),
    ),
    Case(
        alert="TokenwardRestarting", why="one deployment",
        series=bare("process_start_time_seconds", "100x6 200x20"), at=14,
    ),
    Case(
        alert="TokenwardDatabaseDown", why="gone for a minute",
        series=bare("tokenward_database_up", "1 1 0x10"), at=3, fires=((AT, 0),),
    ),
    Case(
        alert="TokenwardDatabaseDown", why="back before a minute was over",
        series=bare("tokenward_database_up", "1 0 1x10"), at=3,
    ),
    Case(
        alert="TokenwardNotificationListenerDown", why="deaf for ten minutes",
        series={**UP, **bare("tokenward_notification_listener_up", "0x30")}, at=10,
        fires=((AT, 0),),
    ),
    Case(
        alert="TokenwardNotificationListenerDown", why="the database is away, which has its own",
        series=bare("tokenward_database_up", "0x30")
        | bare("tokenward_notification_listener_up", "0x30"), at=11,
    ),
    Case(
        alert="TokenwardEncryptionKeyMissing", why="others use a key that is not here",
        series=keys_missing("now", "0 1x10"), at=2, fires=((NEEDED_NOW, 1),),
    ),
    Case(
        alert="TokenwardEncryptionKeyMissing", why="configured within a minute",
        series=keys_missing("now", "0 1 0x10"), at=4,
    ),
    Case(
        alert="TokenwardEncryptionKeyAwaited", why="forgotten in a roll-out",
        series=keys_missing("soon", "0 2x30"), at=16, fires=((NEEDED_SOON, 2),),
    ),
    Case(
        alert="TokenwardEncryptionKeyAwaited", why="a roll-out of ten minutes",
        series=keys_missing("soon", "0 1x9 0x30"), at=17,
    ),
    Case(
        alert="TokenwardJournalNotDraining", why="replies that nothing takes",
        series={**bare("tokenward_journal_entries", "3x30"), **refreshes("success", "7x30")}, at=6,
        fires=((AT, 3),),
    ),
    Case(
        alert="TokenwardJournalNotDraining", why="a busy daemon: 50 refreshes a second",
        series={**bare("tokenward_journal_entries", "40x30"), **refreshes("success", "0+1500x30"),
            **refreshes("superseded", "0+1500x30"),
        },
        at=15,
    ),
    Case(
        alert="TokenwardJournalNotDraining", why="empty now and then",
        series={
            **bare("tokenward_journal_entries", "3 3 0 3 3 0 3 3 0 3 3 0 3 3 0 3 3 0"),
            **refreshes("success", "7x30"),
        },
        at=15,
    ),
    Case(
        alert="TokenwardSinkFailing", why="a disk is full",
        series=bare("tokenward_sinks_failing", "0 2x10"), at=6, fires=((AT, 2),),
    ),
    Case(
        alert="TokenwardSinkFailing", why="written at the next try",
        series=bare("tokenward_sinks_failing", "0 1 1 0x10"), at=8,
    ),
    Case(
        alert="TokenwardLogLinesDropped", why="some were lost",
        series=bare("tokenward_log_lines_dropped_total", "0x5 30x20"), at=6, fires=((AT, 30),),
    ),
    Case(
        alert="TokenwardLogLinesDropped", why="lost long ago",
        series=bare("tokenward_log_lines_dropped_total", "30x40"), at=30,
    ),
    Case(
        alert="TokenwardFilesRunningOut", why="nine of ten are open",
        series={**bare("process_open_fds", "900x20"), **bare("process_max_fds", "1000x20")}, at=5,
        fires=((AT, 0.9),),
    ),
    Case(
        alert="TokenwardFilesRunningOut", why="half are open",
        series={**bare("process_open_fds", "500x20"), **bare("process_max_fds", "1000x20")}, at=6,
    ),
    Case(
        alert="TokenwardConnectionsExpired", why="two, of which a daemon has counted one so far",
        series={
            f'tokenward_expired_connections{{{J},provider="acme"}}': "0 0 2x20",
            f'tokenward_expired_connections{{{K},provider="acme"}}': "0 0 1x20",
        },
        at=4, fires=((ACME, 2),),
    ),
    Case(
        alert="TokenwardConnectionsExpired", why="an import that is refreshed at once",
        series={f'tokenward_expired_connections{{{J},provider="acme"}}': "0 1 0x20"}, at=4,
    ),
    Case(
        alert="TokenwardTokensAboutToExpire", why="one fails, and one has 240 s left",
        series={
            **UP, **connections("active", "9x20"), **connections("failing", "1x20"),
            **connections("failing", "0x20", scrape=K),
            f'tokenward_soonest_expiry_seconds{{{J},provider="acme"}}': "600-60x20",
            f'tokenward_soonest_expiry_seconds{{{K},provider="acme"}}': "900x20",
        },
        at=7, fires=((ACME, 180),),
    ),
    Case(
        alert="TokenwardTokensAboutToExpire", why="the database is away and time goes on",
        series={
            **bare("tokenward_database_up", "0x20"),
            **connections("active", "9x20"), **connections("failing", "0x20"),
            f'tokenward_soonest_expiry_seconds{{{J},provider="acme"}}': "600-60x20",
        },
        at=7, fires=((ACME, 180),),
    ),
    Case(
        alert="TokenwardTokensAboutToExpire", why="the other daemon has the database",
        series={
            **bare("tokenward_database_up", "0x20"),
            **bare("tokenward_database_up", "1x20", scrape=K),
            **connections("active", "9x20"), **connections("failing", "0x20"),
            f'tokenward_soonest_expiry_seconds{{{J},provider="acme"}}': "20x20",
        },
        at=10,
    ),
    Case(
        alert="TokenwardTokensAboutToExpire", why="short-lived tokens, all well",
        series={
            **UP, **connections("active", "9x20"), **connections("failing", "0x20"),
            f'tokenward_soonest_expiry_seconds{{{J},provider="acme"}}': "20x20",
        },
        at=10,
    ),
    Case(
        alert="TokenwardTokensAboutToExpire", why="one fails and has an hour left",
        series={
            **UP, **connections("failing", "1x20"),
            f'tokenward_soonest_expiry_seconds{{{J},provider="acme"}}': "3600x20",
        },
        at=10,
    ),
    Case(
        alert="TokenwardTokensUnavailable", why="one read in ten",
        series={**reads("served", "0+90x20"), **reads("unavailable", "0+10x20")}, at=3,
        fires=((ACME, 0.1),),
    ),
    Case(
        alert="TokenwardTokensUnavailable", why="a good token with a warning is a token",
        series={
            **reads("served", "0+90x20"), **reads("warned", "0+90x20"),
            **reads("unavailable", "0x20"), **reads("reauthorization_required", "0+10x20"),
        },
        at=10,
    ),
    Case(
        alert="TokenwardTokensUnavailable", why="nobody reads",
        series={**reads("served", "5x20"), **reads("unavailable", "5x20")}, at=10,
    ),
    Case(
        alert="TokenwardTokenReadsSlow", why="most take 1 to 5 s",
        series=histogram(
            "token_request_duration_seconds",
            {"1.0": "0+10x30", "5.0": "0+110x30", "30.0": "0+110x30", "+Inf": "0+110x30"},
        ),
        at=11, fires=((JOB, 4.956),),
    ),
    Case(
        alert="TokenwardTokenReadsSlow", why="from memory",
        series=histogram(
            "token_request_duration_seconds",
            {"0.0001": "0+100x30", "1.0": "0+100x30", "+Inf": "0+100x30"},
        ),
        at=16,
    ),
    Case(
        alert="TokenwardRefreshesFailing", why="half of them time out",
        series={
            **refreshes("success", "0+4x30"), **refreshes("failed", "0+4x30"),
            **failures("timeout", "0+4x30"), **failures("network", "0x30"),
        },
        at=6, fires=((ACME | {"reason": "timeout"}, 0.5),),
    ),
    Case(
        alert="TokenwardRefreshesFailing", why="dead grants are another story",
        series={
            **refreshes("success", "0+4x30"), **refreshes("rejected", "0+4x30"),
            **failures("invalid_grant", "0+4x30"),
        },
        at=11,
    ),
    Case(
        alert="TokenwardRefreshesFailing", why="one in twenty-one",
        series={
            **refreshes("success", "0+20x30"), **refreshes("failed", "0+1x30"),
            **failures("timeout", "0+1x30"),
        },
        at=11,
    ),
    Case(
        alert="TokenwardRefreshesFailing", why="one failure in four minutes is all there is",
        series={
            **refreshes("failed", "0 0 0 1 1 1 1 2 2 2 2 3 3 3 3 4 4 4 4 5 5 5 5"),
            **failures("timeout", "0 0 0 1 1 1 1 2 2 2 2 3 3 3 3 4 4 4 4 5 5 5 5"),
        },
        at=20,
    ),
    Case(
        alert="TokenwardRefreshesFailing", why="the only refresh of an hour failed once",
        series={**refreshes("failed", "0x5 1x30"), **failures("timeout", "0x5 1x30")}, at=8,
    ),
    Case(
        alert="TokenwardClientRefused", why="the secret was changed there",
        series=failures("invalid_client", "0x3 1+2x20"), at=5,
        adds=True, fires=((ACME | {"reason": "invalid_client"}, 3),),
    ),
    Case(
        alert="TokenwardClientRefused", why="a provider that is down",
        series=failures("server_error", "0+2x20"), at=6,
    ),
    Case(
        alert="TokenwardProviderRateLimited", why="429 each minute",
        series=failures("rate_limited", "0+1x30"), at=8, adds=True, fires=((ACME, 8),),
    ),
    Case(
        alert="TokenwardProviderRateLimited", why="429 once",
        series=failures("rate_limited", "0x5 1x30"), at=20,
    ),
    Case(
        alert="TokenwardProviderCircuitOpen", why="probes only, and all fail",
        series={
            **failures("server_error", "0+1x20"), **refreshes("failed", "0+1x20"),
            **refreshes("success", "50x20"),
        },
        at=6, adds=True, fires=((ACME, 5),),
    ),
    Case(
        alert="TokenwardProviderCircuitOpen", why="the other daemon succeeds",
        series={
            **failures("server_error", "0+2x20"), **refreshes("success", "50x20"),
            **refreshes("success", "0+1x20", scrape=K),
        },
        at=8,
    ),
    Case(
        alert="TokenwardProviderCircuitOpen", why="one connection tries twice and succeeds",
        series={**failures("server_error", "0x3 2x20"), **refreshes("success", "0x5 1x20")}, at=6,
    ),
    Case(
        alert="TokenwardProviderCircuitOpen", why="429 is an answer",
        series={**failures("rate_limited", "0+2x20"), **refreshes("success", "50x20")}, at=8,
    ),
    Case(
        alert="TokenwardProviderCircuitOpen", why="a dead grant is an answer",
        series={
            **failures("invalid_grant", "0+2x20"), **refreshes("success", "5x20"),
            **refreshes("rejected", "0+2x20"),
        },
        at=8,
    ),
    Case(
        alert="TokenwardNothingRefreshed", why="40 are due and the counters stand",
        series={
            **UP, **bare("tokenward_refreshes_due", "40x40"), **refreshes("success", "900x40"),
            **refreshes("failed", "3x40"),
        },
        at=6, fires=((JOB, 40),),
    ),
    Case(
        alert="TokenwardNothingRefreshed", why="long-lived tokens, nothing is due",
        series={
            **UP, **bare("tokenward_refreshes_due", "0x40"), **refreshes("success", "900x40"),
        },
        at=16,
    ),
    Case(
        alert="TokenwardNothingRefreshed", why="they are tried, and fail",
        series={
            **UP, **bare("tokenward_refreshes_due", "40x40"), **refreshes("failed", "0+2x40"),
        },
        at=16,
    ),
    Case(
        alert="TokenwardNothingRefreshed", why="the database is away, which has its own",
        series={
            **bare("tokenward_database_up", "0x40"), **bare("tokenward_refreshes_due", "40x40"),
            **refreshes("success", "900x40"),
        },
        at=16,
    ),
    Case(
        alert="TokenwardNoRefresher", why="the only refresher goes away",
        series={
            **role("serve", "1x40"), **role("refresh", "0x40"), **role("all", "0x40"),
            **role("refresh", "1x9 stale", scrape=CENTRAL),
        },
        at=15, fires=((JOB, 1),),
    ),
    Case(
        alert="TokenwardNoRefresher", why="a refresher of another job is there",
        series={
            **role("serve", "1x40"), **role("refresh", "0x40"), **role("all", "0x40"),
            **role("refresh", "1x40", scrape=CENTRAL),
        },
        at=30,
    ),
    Case(
        alert="TokenwardNoRefresher", why="nobody only serves",
        series={**role("serve", "0x40"), **role("all", "1x40")}, at=30,
    ),
    Case(
        alert="TokenwardRefreshBacklog", why="500 due at one in a second",
        series={
            **bare("tokenward_refreshes_due", "500x40"), **refreshes("success", "0+60x40"),
        },
        at=11, fires=((JOB, 500),),
    ),
    Case(
        alert="TokenwardRefreshBacklog", why="500 due at a hundred in a second",
        series={
            **bare("tokenward_refreshes_due", "500x40"), **refreshes("success", "0+6000x40"),
        },
        at=21,
    ),
    Case(
        alert="TokenwardRefreshBacklog", why="a handful at a provider that is down",
        series={**bare("tokenward_refreshes_due", "8x40"), **refreshes("failed", "0+2x40")}, at=21,
    ),
    Case(
        alert="TokenwardRefreshesLate", why="most are stored 1 to 5 minutes late",
        series=histogram(
            "refresh_lag_seconds", {"60.0": "0+10x40", "300.0": "0+100x40", "+Inf": "0+100x40"}
        ),
        at=11, fires=((JOB, 286.667),),
    ),
    Case(
        alert="TokenwardRefreshesLate", why="an outage is over, and all that was due comes at once",
        series=histogram(
            "refresh_lag_seconds",
            {"60.0": "0x5 9+1x40", "300.0": "0x5 90+1x40", "+Inf": "0x5 90+1x40"},
        ),
        at=16,
    ),
    Case(
        alert="TokenwardRefreshesLate", why="nearly all within half a second",
        series=histogram(
            "refresh_lag_seconds", {"0.5": "0+99x40", "60.0": "0+99x40", "+Inf": "0+100x40"}
        ),
        at=16,
    ),
    Case(
        alert="TokenwardFailingUntried", why="put aside, while others are refreshed",
        series={
            **connections("failing", "1x40"), **refreshes("success", "0+1x40"),
            **refreshes("failed", "5x40"), **connections("active", "7x40"),
        },
        at=31, fires=((ACME, 1),),
    ),
    Case(
        alert="TokenwardFailingUntried", why="tried again and again",
        series={**connections("failing", "2x40"), **refreshes("failed", "0+1x40")}, at=31,
    ),
    Case(
        alert="TokenwardReauthorizationRequired", why="one refused refresh, one refused test",
        series={
            **refreshes("rejected", "0x3 1x20"),
            **grants("revocations_total", 'initiator="provider",result="detected"', "0x3 1x20"),
        },
        at=4, adds=True, fires=((ACME, 2),),
    ),
    Case(
        alert="TokenwardReauthorizationRequired", why="dead since yesterday",
        series={
            **connections("reauthorization_required", "7x40"), **refreshes("rejected", "7x40"),
            **grants("revocations_total", 'initiator="provider",result="detected"', "0x40"),
        },
        at=30,
    ),
    Case(
        alert="TokenwardGrantsEndingInNumbers", why="11 of 200, which two daemons count",
        series={
            **refreshes("rejected", "0x3 11x90"), **refreshes("rejected", "0x90", scrape=K),
            **refreshes("success", "0+9x90"), **connections("pending", "500x90"),
            **connections("active", "120x90"), **connections("active", "120x90", scrape=K),
            **connections("reauthorization_required", "80x90"),
        },
        at=4, fires=((ACME, 11),),
    ),
    Case(
        alert="TokenwardGrantsEndingInNumbers", why="60 of ten thousand",
        series={**refreshes("rejected", "0+1x90"), **connections("active", "10000x90")}, at=65,
    ),
    Case(
        alert="TokenwardGrantsEndingInNumbers", why="two of three",
        series={**refreshes("rejected", "0x9 2x90"), **connections("active", "3x90")}, at=65,
    ),
    Case(
        alert="TokenwardAuthorizationsFailing", why="one a minute, and none gets through",
        series={
            **grants("authorizations_total", 'outcome="failed"', "0+1x60"),
            **grants("authorizations_total", 'outcome="completed"', "4x60"),
        },
        at=10, adds=True, fires=((ACME, 10),),
    ),
    Case(
        alert="TokenwardAuthorizationsFailing", why="people who say no",
        series={
            **grants("authorizations_total", 'outcome="denied"', "0+1x60"),
            **grants("authorizations_total", 'outcome="failed"', "0x60"),
            **grants("authorizations_total", 'outcome="completed"', "4x60"),
        },
        at=40,
    ),
    Case(
        alert="TokenwardRevocationsStuck", why="queued, and nothing taken for an hour",
        series={
            **grants("revocations_total", 'initiator="caller",result="queued"', "0x9 3x90"),
            **grants("revocations_total", 'initiator="caller",result="revoked"', "8x90"),
        },
        at=70, adds=True, fires=((ACME, 3),),
    ),
    Case(
        alert="TokenwardRevocationsStuck", why="queued, and taken ten minutes later",
        series={
            **grants("revocations_total", 'initiator="caller",result="queued"', "0x9 3x90"),
            **grants("revocations_total", 'initiator="caller",result="revoked"', "0x20 3x90"),
        },
        at=80,
    ),
    Case(
        alert="TokenwardWebhookFailing", why="nothing but failures",
        series={
            f'tokenward_webhook_deliveries_total{{{J},outcome="failed"}}': "0+1x60",
            f'tokenward_webhook_deliveries_total{{{J},outcome="delivered"}}': "9x60",
        },
        at=18, adds=True, fires=((JOB, 15),),
    ),
    Case(
        alert="TokenwardWebhookFailing", why="one event is refused, the others are taken",
        series={
            f'tokenward_webhook_deliveries_total{{{J},outcome="failed"}}': "0+1x60",
            f'tokenward_webhook_deliveries_total{{{J},outcome="delivered"}}': "0+9x60",
        },
        at=35,
    ),
    Case(
        alert="TokenwardWebhookDeadLetters", why="one was given up",
        series={f'tokenward_webhook_deliveries_total{{{J},outcome="dead"}}': "0x60 1x60"}, at=61,
        adds=True, fires=((JOB, 1),),
    ),
    Case(
        alert="TokenwardWebhookDeadLetters", why="given up yesterday",
        series={f'tokenward_webhook_deliveries_total{{{J},outcome="dead"}}': "1x120"}, at=90,
    ),
)  # fmt: skip
