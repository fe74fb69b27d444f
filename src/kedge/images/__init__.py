"""Building images: a recipe (`ImageSpec`, bound) becomes directories that containers are made of (`BuiltImage`).

The room is used in two ways. A server reads it: `plan` (pure) names what a recipe would give, `store` knows whether it
is there; that takes a millisecond and no process. What is missing is built by a process of its own, `python -m
kedge.images` (`__main__`, `builder`), which tells on a pipe how it goes, and ends when its standard input does.

A recipe is a chain of steps. Each has an id, which covers everything before it, and gives a `Layer`: the `BuiltImage`
that the recipe would be if it ended there. `store.Store` keeps layers under `<KEDGE_HOME>/images/layers/<id>/`; the
`layer.json` in there is written last, so a directory without it is rubbish, whatever happened. A layer never changes
once it is there: a build that was forced gives other ids (`plan`).

To add a kind of step: write `handler(workspace: steps.Workspace) -> store.Layer`, put it into the table `HANDLERS` of
its module, and name the module in `steps.MODULES`. The workspace holds the step's arguments and files, its parent
layer, a directory that is this layer's alone and already at its final path (left behind half-made by no failure), and
`run`, which runs a command with its output streamed into log and progress, secrets blotted out, a bound on time, and
the whole process group killed at the end. What the layer has beyond its parent is said with `workspace.layer(...)`.

`workspace.surroundings()` says how commands run in the image's own root, where it has one (`overlay.entered`); Python
steps use it, so that packages that compile something see the headers that apt has installed.
"""
