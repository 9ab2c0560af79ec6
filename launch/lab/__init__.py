"""The WAN lab: several sites on one machine, joined by links of any bandwidth, delay, jitter and loss."""
