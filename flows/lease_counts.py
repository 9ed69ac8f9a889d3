"""Slots that a server's database counts as taken, and the leases that stand for them, which are files in its folder.

The two come apart where another folder is given for the database, where the files are deleted, or where the server dies
between two writes. Such a slot would be taken for ever: what gives slots of the dead back goes by the leases.
"""

from __future__ import annotations

import sys
from collections import Counter
from uuid import UUID

from tasks.admission import OURS


async def set_right() -> None:
    """Have each limit of ours count the slots that have a lease, expired ones too; before anybody is served.

    Where the leases are kept elsewhere, by the user's own setting, other servers may share them: nothing is done.
    """
    from prefect.server.concurrency.lease_storage import get_concurrency_lease_storage
    from prefect.server.concurrency.lease_storage.filesystem import ConcurrencyLeaseStorage
    from prefect.server.database import provide_database_interface
    from sqlalchemy import select

    storage = get_concurrency_lease_storage()
    if not isinstance(storage, ConcurrencyLeaseStorage):
        return
    taken: Counter[UUID] = Counter()
    expired = await storage.read_expired_lease_ids(limit=sys.maxsize)  # first: it mends the index that both read
    active = await storage.read_active_lease_ids(limit=sys.maxsize)
    for lease in [await storage.read_lease(one) for one in {*active, *expired}]:
        if lease is not None and lease.metadata is not None:
            taken.update(dict.fromkeys(lease.resource_ids, lease.metadata.slots))
    database = provide_database_interface()
    await database.create_db()
    limits = database.ConcurrencyLimitV2
    async with database.session_context(begin_transaction=True) as session:
        for limit in (await session.execute(select(limits).where(limits.name.startswith(OURS)))).scalars():
            limit.active_slots = taken[limit.id]
