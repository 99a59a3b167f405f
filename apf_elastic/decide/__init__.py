"""The pure core: `decide(world, settings) -> Plan`."""
