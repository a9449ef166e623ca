"""Subscribes to every change of one table with the official client and its default options, and
prints a JSON line for each thing that happens, in the words of subscribe.mjs. Ends when its
standard input does.

Environment: SUPABASE_URL, SUPABASE_SERVICE_ROLE_KEY, TABLE (of the schema public).
"""

import asyncio
import json
import os
import sys

from realtime import AsyncRealtimeClient


def say(**line):
    print(json.dumps(line, default=str), flush=True)


def plain(payload):
    return payload if isinstance(payload, dict) else payload.model_dump(mode="json")


def changed(payload):
    data = plain(payload)["data"]
    say(
        change={
            "eventType": data["type"],
            "schema": data["schema"],
            "table": data["table"],
            "errors": data.get("errors"),
            "new": data.get("record") or {},
            "old": data.get("old_record") or {},
        }
    )


async def main():
    url = os.environ["SUPABASE_URL"] + "/realtime/v1"
    client = AsyncRealtimeClient(url, os.environ["SUPABASE_SERVICE_ROLE_KEY"])
    await client.connect()
    channel = client.channel("peer")
    channel.on_postgres_changes("*", changed, table=os.environ["TABLE"], schema="public")
    channel.on_system(lambda system: say(system=plain(system)))
    await channel.subscribe(lambda status, error: say(status=status.value, error=error and str(error)))
    await asyncio.to_thread(sys.stdin.read)
    await client.remove_all_channels()
    await client.close()


asyncio.run(main())
