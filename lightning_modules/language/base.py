"""What methods around one language model share: how it is built and sharded, saved without its frozen weights, and exported."""

from abc import abstractmethod
from typing import Any

from lightning_modules.base import Exportable, OptimizerFactory
from lightning_modules.language.network import Recipe, blocks_of, build
from lightning_modules.language.rotary import SteadyFrequencies


class LanguageModule(SteadyFrequencies):
    """A method that trains one language model, `self.model`; it is there after `configure_model`, when the data knows its vocabulary.

    `config.lora` is a LoraSection, `pretrained` the name of a model that others have trained, if it is one.
    """

    def __init__(self, config: Any, optimizer: OptimizerFactory, pretrained: str | None) -> None:
        super().__init__(config, optimizer)
        self.model: Any = None
        self.is_adapter = bool(pretrained and config.lora.rank)  # only factors beside a pretrained model are trained
        self.strict_loading = not self.is_adapter  # Lightning then accepts checkpoints without the frozen weights

    @abstractmethod
    def recipe(self) -> Recipe:
        """Say which network to build for the data at hand."""

    def configure_model(self) -> None:
        """Build the network; called by Lightning on every process, more than once."""
        if self.model is not None:
            return
        recipe = self.recipe()
        model, give_weights = build(recipe, self.device_mesh, self.holds_parts)
        blocks = blocks_of(model)
        if recipe.compile:
            for part in blocks if self.device_mesh is not None else [model]:  # shards are gathered between compiled blocks
                part.compile()
        self.model = self.shard(model.train(), blocks)
        give_weights()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep only the factors of an adapter: the model that they belong to stays where it came from."""
        if self.is_adapter:
            trained = {name for name, p in self.named_parameters() if p.requires_grad}
            checkpoint["state_dict"] = {name: value for name, value in checkpoint["state_dict"].items() if name in trained}

    def exportable(self) -> Exportable:
        return Exportable(self.model, self.trainer.datamodule.tokenizer)  # type: ignore[attr-defined]
