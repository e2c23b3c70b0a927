"""Software-engineering tasks: an issue of a repository, a patch, and the tests that decide.

`instance` reads them, `repository` and `tree` hold files without history, `workshop` applies patches in a sandbox,
`restore` undoes what a patch may not touch, `testing` runs tests, `controls` makes tests that must fail, and `grade`
puts these together. `edits` and `prompt` are a rollout's side. No role: the reward and the command line use it.
"""
