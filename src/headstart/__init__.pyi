"""A head start on your own task from four pretrained model families: BiT, CvT, BEiT and YOSO."""

from headstart.auto import AutoBackbone as AutoBackbone
from headstart.auto import AutoConfig as AutoConfig
from headstart.auto import AutoFeatureExtractor as AutoFeatureExtractor
from headstart.auto import AutoImageProcessor as AutoImageProcessor
from headstart.auto import AutoModel as AutoModel
from headstart.auto import AutoModelForImageClassification as AutoModelForImageClassification
from headstart.auto import AutoModelForMaskedImageModeling as AutoModelForMaskedImageModeling
from headstart.auto import AutoModelForMaskedLM as AutoModelForMaskedLM
from headstart.auto import AutoModelForMultipleChoice as AutoModelForMultipleChoice
from headstart.auto import AutoModelForQuestionAnswering as AutoModelForQuestionAnswering
from headstart.auto import AutoModelForSemanticSegmentation as AutoModelForSemanticSegmentation
from headstart.auto import AutoModelForSequenceClassification as AutoModelForSequenceClassification
from headstart.auto import AutoModelForTokenClassification as AutoModelForTokenClassification
from headstart.auto import AutoTokenizer as AutoTokenizer
from headstart.config import PreTrainedConfig as PreTrainedConfig
from headstart.config import PretrainedConfig as PretrainedConfig
from headstart.engine import export as export
from headstart.engine import optimize as optimize
from headstart import errors as errors
from headstart.features.embed import embed as embed
from headstart.images.processor import BatchFeature as BatchFeature
from headstart.models.beit.config import BeitConfig as BeitConfig
from headstart.models.beit.flax import FlaxBeitForImageClassification as FlaxBeitForImageClassification
from headstart.models.beit.flax import FlaxBeitForMaskedImageModeling as FlaxBeitForMaskedImageModeling
from headstart.models.beit.flax import FlaxBeitModel as FlaxBeitModel
from headstart.models.beit.flax import FlaxBeitPreTrainedModel as FlaxBeitPreTrainedModel
from headstart.models.beit.image import BeitFeatureExtractor as BeitFeatureExtractor
from headstart.models.beit.image import BeitImageProcessor as BeitImageProcessor
from headstart.models.beit.image_tokenizer import DalleImageTokenizer as DalleImageTokenizer
from headstart.models.beit.masking import blockwise_mask as blockwise_mask
from headstart.models.beit.segmentation import BeitBackbone as BeitBackbone
from headstart.models.beit.segmentation import BeitForSemanticSegmentation as BeitForSemanticSegmentation
from headstart.models.beit.torch import BeitForImageClassification as BeitForImageClassification
from headstart.models.beit.torch import BeitForMaskedImageModeling as BeitForMaskedImageModeling
from headstart.models.beit.torch import BeitModel as BeitModel
from headstart.models.beit.torch import BeitPreTrainedModel as BeitPreTrainedModel
from headstart.models.bit.config import BitConfig as BitConfig
from headstart.models.bit.image import BitImageProcessor as BitImageProcessor
from headstart.models.bit.torch import BitBackbone as BitBackbone
from headstart.models.bit.torch import BitForImageClassification as BitForImageClassification
from headstart.models.bit.torch import BitModel as BitModel
from headstart.models.bit.torch import BitPreTrainedModel as BitPreTrainedModel
from headstart.models.cvt.config import CvtConfig as CvtConfig
from headstart.models.cvt.image import ConvNextFeatureExtractor as ConvNextFeatureExtractor
from headstart.models.cvt.image import ConvNextImageProcessor as ConvNextImageProcessor
from headstart.models.cvt.keras import KerasCvtForImageClassification as KerasCvtForImageClassification
from headstart.models.cvt.keras import KerasCvtModel as KerasCvtModel
from headstart.models.cvt.keras import TFCvtForImageClassification as TFCvtForImageClassification
from headstart.models.cvt.keras import TFCvtModel as TFCvtModel
from headstart.models.cvt.torch import CvtBackbone as CvtBackbone
from headstart.models.cvt.torch import CvtForImageClassification as CvtForImageClassification
from headstart.models.cvt.torch import CvtModel as CvtModel
from headstart.models.cvt.torch import CvtPreTrainedModel as CvtPreTrainedModel
from headstart.models.yoso.attention import choose_num_hash as choose_num_hash
from headstart.models.yoso.attention import measure_num_hash as measure_num_hash
from headstart.models.yoso.config import YosoConfig as YosoConfig
from headstart.models.yoso.encoding import BatchEncoding as BatchEncoding
from headstart.models.yoso.heads import YosoForMaskedLM as YosoForMaskedLM
from headstart.models.yoso.heads import YosoForMultipleChoice as YosoForMultipleChoice
from headstart.models.yoso.heads import YosoForQuestionAnswering as YosoForQuestionAnswering
from headstart.models.yoso.heads import YosoForSequenceClassification as YosoForSequenceClassification
from headstart.models.yoso.heads import YosoForTokenClassification as YosoForTokenClassification
from headstart.models.yoso.tokenizer import YosoTokenizer as YosoTokenizer
from headstart.models.yoso.torch import YosoModel as YosoModel
from headstart.models.yoso.torch import YosoPreTrainedModel as YosoPreTrainedModel
from headstart.nn.torch import PreTrainedModel as PreTrainedModel
from headstart.outputs import BackboneOutput as BackboneOutput
from headstart.outputs import BaseModelOutput as BaseModelOutput
from headstart.outputs import BaseModelOutputWithCLSToken as BaseModelOutputWithCLSToken
from headstart.outputs import BaseModelOutputWithCrossAttentions as BaseModelOutputWithCrossAttentions
from headstart.outputs import BaseModelOutputWithPooling as BaseModelOutputWithPooling
from headstart.outputs import BaseModelOutputWithPoolingAndNoAttention as BaseModelOutputWithPoolingAndNoAttention
from headstart.outputs import BeitModelOutputWithPooling as BeitModelOutputWithPooling
from headstart.outputs import FlaxBeitModelOutputWithPooling as FlaxBeitModelOutputWithPooling
from headstart.outputs import FlaxMaskedLMOutput as FlaxMaskedLMOutput
from headstart.outputs import FlaxSequenceClassifierOutput as FlaxSequenceClassifierOutput
from headstart.outputs import ImageClassifierOutput as ImageClassifierOutput
from headstart.outputs import ImageClassifierOutputWithNoAttention as ImageClassifierOutputWithNoAttention
from headstart.outputs import MaskedLMOutput as MaskedLMOutput
from headstart.outputs import ModelOutput as ModelOutput
from headstart.outputs import MultipleChoiceModelOutput as MultipleChoiceModelOutput
from headstart.outputs import QuestionAnsweringModelOutput as QuestionAnsweringModelOutput
from headstart.outputs import SemanticSegmenterOutput as SemanticSegmenterOutput
from headstart.outputs import SequenceClassifierOutput as SequenceClassifierOutput
from headstart.outputs import TFBaseModelOutputWithCLSToken as TFBaseModelOutputWithCLSToken
from headstart.outputs import TFImageClassifierOutputWithNoAttention as TFImageClassifierOutputWithNoAttention
from headstart.outputs import TokenClassifierOutput as TokenClassifierOutput
from headstart.pipelines.base import pipeline as pipeline
from headstart.serving.batches import BatchEmbedder as BatchEmbedder
from headstart.serving.batches import BatchPredictor as BatchPredictor
from headstart.training.distill import distill as distill
from headstart.training.evaluate import evaluate as evaluate
from headstart.training.plan import plan as plan
from headstart.training.run import train as train
from headstart.training.update import forget as forget
from headstart.training.update import update as update

__version__: str

__all__ = [
    "AutoBackbone",
    "AutoConfig",
    "AutoFeatureExtractor",
    "AutoImageProcessor",
    "AutoModel",
    "AutoModelForImageClassification",
    "AutoModelForMaskedImageModeling",
    "AutoModelForMaskedLM",
    "AutoModelForMultipleChoice",
    "AutoModelForQuestionAnswering",
    "AutoModelForSemanticSegmentation",
    "AutoModelForSequenceClassification",
    "AutoModelForTokenClassification",
    "AutoTokenizer",
    "BackboneOutput",
    "BaseModelOutput",
    "BaseModelOutputWithCLSToken",
    "BaseModelOutputWithCrossAttentions",
    "BaseModelOutputWithPooling",
    "BaseModelOutputWithPoolingAndNoAttention",
    "BatchEmbedder",
    "BatchEncoding",
    "BatchFeature",
    "BatchPredictor",
    "BeitBackbone",
    "BeitConfig",
    "BeitFeatureExtractor",
    "BeitForImageClassification",
    "BeitForMaskedImageModeling",
    "BeitForSemanticSegmentation",
    "BeitImageProcessor",
    "BeitModel",
    "BeitModelOutputWithPooling",
    "BeitPreTrainedModel",
    "BitBackbone",
    "BitConfig",
    "BitForImageClassification",
    "BitImageProcessor",
    "BitModel",
    "BitPreTrainedModel",
    "ConvNextFeatureExtractor",
    "ConvNextImageProcessor",
    "CvtBackbone",
    "CvtConfig",
    "CvtForImageClassification",
    "CvtModel",
    "CvtPreTrainedModel",
    "DalleImageTokenizer",
    "FlaxBeitForImageClassification",
    "FlaxBeitForMaskedImageModeling",
    "FlaxBeitModel",
    "FlaxBeitModelOutputWithPooling",
    "FlaxBeitPreTrainedModel",
    "FlaxMaskedLMOutput",
    "FlaxSequenceClassifierOutput",
    "ImageClassifierOutput",
    "ImageClassifierOutputWithNoAttention",
    "KerasCvtForImageClassification",
    "KerasCvtModel",
    "MaskedLMOutput",
    "ModelOutput",
    "MultipleChoiceModelOutput",
    "PreTrainedConfig",
    "PreTrainedModel",
    "PretrainedConfig",
    "QuestionAnsweringModelOutput",
    "SemanticSegmenterOutput",
    "SequenceClassifierOutput",
    "TFBaseModelOutputWithCLSToken",
    "TFCvtForImageClassification",
    "TFCvtModel",
    "TFImageClassifierOutputWithNoAttention",
    "TokenClassifierOutput",
    "YosoConfig",
    "YosoForMaskedLM",
    "YosoForMultipleChoice",
    "YosoForQuestionAnswering",
    "YosoForSequenceClassification",
    "YosoForTokenClassification",
    "YosoModel",
    "YosoPreTrainedModel",
    "YosoTokenizer",
    "blockwise_mask",
    "choose_num_hash",
    "distill",
    "embed",
    "errors",
    "evaluate",
    "export",
    "forget",
    "measure_num_hash",
    "optimize",
    "pipeline",
    "plan",
    "train",
    "update",
]
