"""A module whose import lasts until the test allows it to end."""

from tests.container.shop import allowed, note

note("held import")
allowed("import")
