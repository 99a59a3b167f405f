"""Backends: what supplies resources. One file each; `apf_elastic.contracts.Backend` says what they must do.

`apf_elastic.testing.backend_contract` is the suite that every one of them passes, and
`apf_elastic.testing.fakes.FakeBackend` the smallest example.
"""
