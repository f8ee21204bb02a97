"""HTTP, version 1: one file per resource. Routes parse, call one stage, and answer; they decide nothing."""
